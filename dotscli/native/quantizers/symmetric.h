// Q6_K: 256 weights in 16 sub-blocks of 16, x = d * scale * (level - 32), with signed 8-bit scales
// and 6-bit levels. Every lane is one block.
//
// The algorithm is ggml's (ggml-quants.c): quantize_row_q6_K_ref, quantize_row_q6_K_impl and
// make_qx_quants.
#pragma once

#include "tile.h"

namespace {

struct Q6K {
    static constexpr int kBlock = 256, kBytes = 210;  // low nibbles 128, high bits 64, scales 16, d
    static constexpr int kSub = 16, kSubs = 16;

    // x ~ scale * level with levels -32..31, which are nearest(inverse * x).
    struct Fit {
        Floats scale, inverse;
        Ints empty;  // no weight is worth a level
    };

    // Takes the largest weight to -32, then to -31.1, -31.2 ... -32.9, and keeps the inverse scale
    // whose levels fit best. w is what the error of a weight counts for.
    static Fit fit(const Floats *x, const Floats *w) {
        Floats largest = {}, size = {}, wx[kSub];
        for (int j = 0; j < kSub; ++j) {
            const Floats a = absolute(x[j]);
            const Ints more = a > size;
            size = select(more, a, size);
            largest = select(more, x[j], largest);
            wx[j] = w[j] * x[j];
        }
        Fit best = {{}, {}, size < kTiny};
        Floats best_gain = {};
        for (int i = 0; i < 19; ++i) {
            const int tenths = i == 0 ? 0 : i <= 9 ? i - 10 : i - 9;  // 0, -9..-1, 1..9
            const Floats inverse = -(32 + 0.1f * tenths) / largest;
            Floats sum_lx = {}, sum_ll = {};
            for (int j = 0; j < kSub; ++j) {
                const Floats level = small_nearest_within(inverse * x[j], -32, 31);
                sum_lx += wx[j] * level;
                sum_ll += w[j] * level * level;
            }
            const Floats scale = sum_lx / sum_ll;
            if (i == 0) {
                best.scale = select(sum_ll != 0, scale, Floats{});
                best.inverse = inverse;
                best_gain = best.scale * sum_lx;
                continue;
            }
            const Ints better = (sum_ll > 0) & (sum_lx * sum_lx > best_gain * sum_ll);
            best.scale = select(better, scale, best.scale);
            best.inverse = select(better, inverse, best.inverse);
            best_gain = select(better, scale * sum_lx, best_gain);
        }
        best.scale = select(best.empty, Floats{}, best.scale);
        return best;
    }

    // Levels 0..63: the low 4 bits of 128 weights in 64 bytes, the first and the third 32 of them
    // in one byte, the second and the fourth in another; the high 2 bits of all four in 32 more.
    static void pack(const Ints *levels, Ints *bytes) {
        for (int j = 0; j < 64; ++j) {
            const Ints *l = levels + j / 32 * 128 + j % 32;
            Ints *low = bytes + j / 32 * 64 + j % 32;
            low[0] = (l[0] & 15) | (l[64] & 15) << 4;
            low[32] = (l[32] & 15) | (l[96] & 15) << 4;
            bytes[128 + j] = l[0] >> 4 | (l[32] >> 4) << 2 | (l[64] >> 4) << 4 | (l[96] >> 4) << 6;
        }
    }

    static void quantize(const Tile<256> &tile, Ints *bytes) {
        Fit fits[kSubs];
        Floats largest = {}, size = {};
        for (int s = 0; s < kSubs; ++s) {
            const Floats *x = tile.x + s * kSub;
            Floats squares[kSub];
            for (int j = 0; j < kSub; ++j) squares[j] = x[j] * x[j];
            fits[s] = fit(x, tile.weighted ? tile.importance + s * kSub : squares);
            const Floats a = absolute(fits[s].scale);
            const Ints more = a > size;
            size = select(more, a, size);
            largest = select(more, fits[s].scale, largest);
        }
        const Ints empty = size < kTiny;  // then every byte of the block is zero
        const Floats inverse = -128.0f / largest;
        const Ints d = select(empty, Ints{}, to_half(1.0f / inverse));
        bytes[208] = d;
        bytes[209] = d >> 8;

        Ints levels[256];
        for (int s = 0; s < kSubs; ++s) {
            const Floats limited = smaller(nearest(inverse * fits[s].scale), all(127));
            const Ints code = select(empty, Ints{}, to_ints(limited) << 24 >> 24);  // a signed byte
            bytes[192 + s] = code;
            const Floats scale = from_half(d) * to_floats(code);
            const Ints vanished = scale == 0;  // ggml leaves the levels of the search
            for (int j = 0; j < kSub; ++j) {
                const Floats x = tile.x[s * kSub + j];
                const Ints level = to_ints(nearest_within(x / scale, -32, 31)) + 32;
                Ints searched = to_ints(nearest_within(fits[s].inverse * x, -32, 31)) + 32;
                searched = select(fits[s].empty | empty, Ints{}, searched);
                levels[s * kSub + j] = select(vanished, searched, level);
            }
        }
        pack(levels, bytes);
    }
};

}  // namespace
