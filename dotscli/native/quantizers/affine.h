// Q4_K and Q5_K: 256 weights in 8 sub-blocks of 32, x = d * scale * level - dmin * offset, with
// 6-bit scales and offsets and 4- or 5-bit levels. Every lane is one block.
//
// The algorithm is ggml's (ggml-quants.c): quantize_row_q4_K_ref without importance,
// quantize_row_q4_K_impl with it, and their Q5_K counterparts.
#pragma once

#include "affine_fit.h"
#include "codes.h"

namespace {

// What the error of a weight counts for, into w; and the sum of that for each sub-block.
inline void weigh_plain(const Tile<256> &tile, Floats *w) {
    for (int first = 0; first < 256; first += kSub) {
        Floats energy = {};
        for (int j = first; j < first + kSub; ++j) energy += tile.x[j] * tile.x[j];
        const Floats average = square_root(energy / float(kSub));
        for (int j = first; j < first + kSub; ++j) w[j] = average + absolute(tile.x[j]);
    }
}

inline void weigh_by_importance(const Tile<256> &tile, Floats *w, Floats *sums) {
    Floats energy = {};
    for (const Floats &x : tile.x) energy += x * x;
    energy = 2.0f * energy / 256.0f;
    for (int s = 0; s < kSubs; ++s) {
        sums[s] = Floats{};
        for (int j = s * kSub; j < (s + 1) * kSub; ++j) {
            w[j] = tile.importance[j] * square_root(energy + tile.x[j] * tile.x[j]);
            sums[s] += w[j];
        }
    }
}

// What the two types share. Fills d, dmin and the codes (the first 16 bytes of a block), and the
// levels, one int each. Range and `limited` are where they differ.
template <int kTop>
void quantize_affine(const Tile<256> &tile, const Range &range, bool limited, Ints *head,
                     Ints *levels) {
    Floats w[256], sums[kSubs];
    if (tile.weighted) {
        weigh_by_importance(tile, w, sums);
    } else {
        weigh_plain(tile, w);
    }

    AffineFit<kTop> fits[kSubs];
    Floats scales[kSubs], offsets[kSubs];
    for (int s = 0; s < kSubs; ++s) fits[s].start(tile.x + s * kSub, w + s * kSub);
    for (int s = 0; s < kSubs; s += 2) search(fits[s], fits[s + 1], range);
    for (int s = 0; s < kSubs; ++s) {
        scales[s] = fits[s].scale;
        offsets[s] = -fits[s].base;
    }

    Codes scale_codes = tile.weighted ? codes_by_search(scales, sums) : codes_by_largest(scales);
    Codes offset_codes = tile.weighted ? codes_by_search(offsets, sums) : codes_by_largest(offsets);
    if (limited) {
        limit(scale_codes);
        limit(offset_codes);
    }
    const Ints d = to_half(scale_codes.unit), dmin = to_half(offset_codes.unit);
    head[0] = d;
    head[1] = d >> 8;
    head[2] = dmin;
    head[3] = dmin >> 8;
    pack_codes(scale_codes, offset_codes, head + 4);

    // The levels once more, under the scales as a reader will find them.
    Ints read_scales[kSubs], read_offsets[kSubs];
    unpack_codes(head + 4, read_scales, read_offsets);
    for (int s = 0; s < kSubs; ++s) {
        const Floats scale = from_half(d) * to_floats(read_scales[s]);
        const Floats offset = from_half(dmin) * to_floats(read_offsets[s]);
        const Ints vanished = scale == 0;  // ggml leaves the levels of the search
        for (int j = 0; j < kSub; ++j) {
            const Floats x = tile.x[s * kSub + j];
            levels[s * kSub + j] = to_ints(nearest_within((x + offset) / scale, 0, kTop));
        }
        if (!any(vanished)) continue;
        for (int j = 0; j < kSub; ++j) {
            Ints &level = levels[s * kSub + j];
            level = select(vanished, fits[s].final_level(j), level);
        }
    }
}

// The low 4 bits of the levels: 64 weights in 32 bytes, the first 32 in the low nibbles.
inline void pack_nibbles(const Ints *levels, Ints *packed) {
    for (int j = 0; j < 128; ++j) {
        const Ints *low = levels + j / 32 * 64 + j % 32;
        packed[j] = (low[0] & 15) | (low[32] & 15) << 4;
    }
}

constexpr Range kImportanceRange = {-0.9f, 0.05f, 36};

struct Q4K {
    static constexpr int kBlock = 256, kBytes = 144;  // d, dmin, codes 12, levels 128

    static void quantize(const Tile<256> &tile, Ints *bytes) {
        const Range range = tile.weighted ? kImportanceRange : Range{-1.0f, 0.1f, 20};
        Ints levels[256];
        quantize_affine<15>(tile, range, false, bytes, levels);
        pack_nibbles(levels, bytes + 16);
    }
};

struct Q5K {
    static constexpr int kBlock = 256, kBytes = 176;  // d, dmin, codes 12, fifth bits 32, levels 128

    static void quantize(const Tile<256> &tile, Ints *bytes) {
        const Range range = tile.weighted ? kImportanceRange : Range{-0.5f, 0.1f, 15};
        Ints levels[256];
        quantize_affine<31>(tile, range, true, bytes, levels);
        for (int j = 0; j < kSub; ++j) {  // bit s of byte j belongs to weight j of sub-block s
            Ints fifth = {};
            for (int s = 0; s < kSubs; ++s) fifth |= (levels[s * kSub + j] >> 4) << s;
            bytes[16 + j] = fifth;
        }
        pack_nibbles(levels, bytes + 48);
    }
};

}  // namespace
