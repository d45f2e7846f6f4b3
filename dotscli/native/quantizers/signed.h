// Q6_K: 256 weights in 16 sub-blocks of 16, x = d * scale * (level - 32), with signed 8-bit scales
// and 6-bit levels.
//
// The algorithm is ggml's (ggml-quants.c): quantize_row_q6_K_ref, quantize_row_q6_K_impl and
// make_qx_quants. Here every lane is one block of 256.
#pragma once

#include "tile.h"

namespace {

struct Q6K {
    static constexpr int kBlock = 256, kBytes = 210;  // levels 128 + 64, scales 16, d
    static constexpr int kSub = 16, kSubs = 16;
    static constexpr float kTiny = 1e-15f;

    // x ~ scale * level with level in -32..31; the levels are nearest(inverse * x).
    struct Fit {
        Floats scale, inverse;
        Ints empty;
    };

    // Tries 19 inverse scales around the one that takes the largest weight to -32. Weights are
    // squared (or the importance) in the sums.
    static Fit fit(const Floats *x, const Floats *w) {
        Floats largest = {}, size = {};
        for (int j = 0; j < kSub; ++j) {
            const Floats a = absolute(x[j]);
            const Ints more = a > size;
            size = select(more, a, size);
            largest = select(more, x[j], largest);
        }
        const Ints empty = size < kTiny;
        Floats wx[kSub];
        for (int j = 0; j < kSub; ++j) wx[j] = w[j] * x[j];

        Fit best = {{}, {}, empty};
        Floats best_gain = {};
        for (int i = 0; i < 19; ++i) {  // the plain one, then 9 below and 9 above
            const int step = i == 0 ? 0 : i <= 9 ? i - 10 : i - 9;
            const Floats inverse = -(32 + 0.1f * step) / largest;
            Floats sum_lx = {}, sum_ll = {};
            for (int j = 0; j < kSub; ++j) {
                // |x| <= |largest|, so no product leaves +-33
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
        best.scale = select(empty, Floats{}, best.scale);
        return best;
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
        const Ints empty = size < kTiny;
        const Floats inverse = -128.0f / largest;
        const Ints d = select(empty, Ints{}, to_half(1.0f / inverse));

        Ints levels[256];
        for (int s = 0; s < kSubs; ++s) {
            const Floats *x = tile.x + s * kSub;
            // A signed byte, as it will be read: wrapped, should it ever lie below -128.
            Ints code = nearest(inverse * fits[s].scale);
            code = select(code > 127, 127 - Ints{}, code) << 24 >> 24;
            code = select(empty, Ints{}, code);
            bytes[192 + s] = code;
            const Floats scale = from_half(d) * to_floats(code);
            const Ints vanished = scale == 0;  // ggml leaves the levels of the search
            for (int j = 0; j < kSub; ++j) {
                Ints level = clamp(nearest(x[j] / scale), -32, 31) + 32;
                Ints searched = clamp(nearest(fits[s].inverse * x[j]), -32, 31) + 32;
                searched = select(fits[s].empty | empty, Ints{}, searched);
                levels[s * kSub + j] = select(vanished, searched, level);
            }
        }
        // 128 weights in 64 + 32 bytes: low nibbles of the first and the third 32 weights, of the
        // second and the fourth, then the high 2 bits of all four.
        for (int j = 0; j < 64; ++j) {
            const Ints *l = levels + j / 32 * 128 + j % 32;
            Ints *low = bytes + j / 32 * 64 + j % 32;
            low[0] = (l[0] & 15) | (l[64] & 15) << 4;
            low[32] = (l[32] & 15) | (l[96] & 15) << 4;
            bytes[128 + j] = l[0] >> 4 | (l[32] >> 4) << 2 | (l[64] >> 4) << 4 | (l[96] >> 4) << 6;
        }
        bytes[208] = d;
        bytes[209] = d >> 8;
    }
};

}  // namespace
