// A tile: as many blocks as there are lanes, transposed so that lane i holds block i.
//
// Weights come in as f32, f16 or bf16 and are widened a tile at a time; finished blocks go out byte
// by byte. This is the only place that knows how blocks lie in memory.
#pragma once

#include "lanes.h"
#include "path.h"

namespace {

template <int kBlock> struct Tile {
    Floats x[kBlock];
    Floats importance[kBlock];
    bool weighted;  // whether importance was given
};

// out[j][lane] = element j of that lane's block.
template <class Stored, int kBlock>
void transpose(const unsigned char *const (&blocks)[kLanes], Ints (&out)[kBlock]) {
    for (int lane = 0; lane < kLanes; ++lane) {
        int32_t *column = reinterpret_cast<int32_t *>(out) + lane;
        for (int j = 0; j < kBlock; ++j) {
            Stored value;
            __builtin_memcpy(&value, blocks[lane] + j * sizeof value, sizeof value);
            column[j * kLanes] = static_cast<int32_t>(value);
        }
    }
}

// The blocks from `first` on; lanes past the last block repeat it and are not stored.
template <int kBlock> void load(const dots_job &job, int64_t first, Tile<kBlock> &tile) {
    const int nbytes = job.source == DOTS_SOURCE_F32 ? 4 : 2;
    tile.weighted = job.importance != nullptr;
    const unsigned char *weights[kLanes], *importance[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t last = job.n_blocks - 1;
        const int64_t block = first + lane < last ? first + lane : last;
        weights[lane] = job.src + block * kBlock * nbytes;
        if (tile.weighted) {
            const float *columns = job.importance + block % job.blocks_per_row * kBlock;
            importance[lane] = reinterpret_cast<const unsigned char *>(columns);
        }
    }
    Ints raw[kBlock];
    if (job.source == DOTS_SOURCE_F32) {
        transpose<int32_t>(weights, raw);
        for (int j = 0; j < kBlock; ++j) tile.x[j] = (Floats)raw[j];
    } else {
        transpose<uint16_t>(weights, raw);
        const bool bf16 = job.source == DOTS_SOURCE_BF16;
        for (int j = 0; j < kBlock; ++j) {
            tile.x[j] = bf16 ? (Floats)(raw[j] << 16) : from_half(raw[j]);
        }
    }
    if (tile.weighted) {
        transpose<int32_t>(importance, raw);
        for (int j = 0; j < kBlock; ++j) tile.importance[j] = (Floats)raw[j];
    }
}

// Writes the blocks of the first `count` lanes. One int per byte comes in, its low 8 bits count;
// four of them leave together as a word.
template <int kBytes> void store(const Ints (&bytes)[kBytes], unsigned char *dst, int count) {
    for (int at = 0; at < kBytes; at += 4) {
        Ints word = {};
        const int width = kBytes - at < 4 ? kBytes - at : 4;
        for (int k = 0; k < width; ++k) word |= (bytes[at + k] & 0xff) << (8 * k);
        for (int lane = 0; lane < count; ++lane) {
            const int32_t value = word[lane];
            __builtin_memcpy(dst + lane * kBytes + at, &value, width);
        }
    }
}

// Runs Format::quantize(tile, bytes) over all blocks of a job.
template <class Format> void quantize_blocks(const dots_job &job) {
    Tile<Format::kBlock> tile;
    Ints bytes[Format::kBytes];
    for (int64_t first = 0; first < job.n_blocks; first += kLanes) {
        const int64_t left = job.n_blocks - first;
        load(job, first, tile);
        Format::quantize(tile, bytes);
        store(bytes, job.dst + first * Format::kBytes, left < kLanes ? int(left) : kLanes);
    }
}

}  // namespace
