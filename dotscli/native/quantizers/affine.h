// Q4_K and Q5_K: 256 weights in 8 sub-blocks of 32, x = d * scale * level - dmin * offset, with
// 6-bit scales and offsets per sub-block and 4- or 5-bit levels.
//
// The algorithm is ggml's (ggml-quants.c): quantize_row_q4_K_ref and make_qkx2_quants without
// importance, quantize_row_q4_K_impl, make_qkx3_quants and make_qp_quants with it, and their
// Q5_K counterparts. Here every lane is one block of 256.
#pragma once

#include "tile.h"

namespace {

constexpr int kSub = 32;       // weights per sub-block
constexpr int kSubs = 8;       // sub-blocks per block
constexpr int kTopScale = 63;  // 6 bits
constexpr float kTiny = 1e-15f;  // ggml takes what is smaller for zero (GROUP_MAX_EPS)

// One sub-block as x ~ scale * level - offset. The levels are not kept: they are
// nearest((x - base) * inverse), and are only wanted where the block's scale underflows.
struct AffineFit {
    Floats scale, offset;
    Floats inverse, base;
};

// How far the search goes: inverse scales (top + first + step * i) / range, for i in 0..last.
struct Search {
    float first, step;
    int last;
};

// Least squares over levels 0..kTop: for a number of inverse scales, rounds the weights to levels,
// solves for the scale and offset that fit these levels best, and keeps the best of all.
template <int kTop>
AffineFit fit_affine(const Floats *x, const Floats *w, const Search &search) {
    Floats low = x[0], high = x[0], sum_w = w[0], sum_wx = w[0] * x[0];
    for (int j = 1; j < kSub; ++j) {
        low = smaller(x[j], low);
        high = larger(x[j], high);
        sum_w += w[j];
        sum_wx += w[j] * x[j];
    }
    low = select(low > 0, Floats{}, low);
    const Ints flat = high == low;

    Floats base = low;  // minus the offset; moves with every better fit
    Floats inverse = float(kTop) / (high - base);
    Floats scale = 1.0f / inverse;
    Floats least = {};
    for (int j = 0; j < kSub; ++j) {
        const Floats level = nearest_within(inverse * (x[j] - base), 0, kTop);
        const Floats error = scale * level + base - x[j];
        least += w[j] * (error * error);
    }
    AffineFit best = {scale, base, inverse, base};

    for (int i = 0; i <= search.last; ++i) {
        inverse = (search.first + search.step * i + kTop) / (high - base);
        Floats levels[kSub], sum_l = {}, sum_ll = {}, sum_lx = {};
        for (int j = 0; j < kSub; ++j) {
            const Floats level = nearest_within(inverse * (x[j] - base), 0, kTop);
            levels[j] = level;
            const Floats wl = w[j] * level;
            sum_l += wl;
            sum_ll += wl * level;
            sum_lx += wl * x[j];
        }
        const Floats determinant = sum_w * sum_ll - sum_l * sum_l;
        Floats new_scale = (sum_w * sum_lx - sum_wx * sum_l) / determinant;
        Floats new_base = (sum_ll * sum_wx - sum_l * sum_lx) / determinant;
        const Ints above = new_base > 0;  // the offset is stored without a sign
        new_scale = select(above, sum_lx / sum_ll, new_scale);
        new_base = select(above, Floats{}, new_base);
        Floats sum_error = {};
        for (int j = 0; j < kSub; ++j) {
            const Floats error = new_scale * levels[j] + new_base - x[j];
            sum_error += w[j] * (error * error);
        }
        const Ints better = (determinant > 0) & (sum_error < least);
        least = select(better, sum_error, least);
        best.inverse = select(better, inverse, best.inverse);
        best.base = select(better, base, best.base);
        scale = select(better, new_scale, scale);
        base = select(better, new_base, base);
    }
    best.scale = select(flat, Floats{}, scale);
    best.offset = -select(flat, low, base);
    best.inverse = select(flat, Floats{}, best.inverse);
    return best;
}

struct Codes {
    Floats unit;        // what one step is worth
    Ints code[kSubs];   // as stored: the low 8 bits
};

// The 8 scales (or offsets) of a block in steps of the largest one's 63rd part.
Codes codes_by_largest(const Floats *values) {
    Floats top = {};
    for (int s = 0; s < kSubs; ++s) top = larger(values[s], top);
    const Floats inverse = select(top > 0, float(kTopScale) / top, Floats{});
    Codes codes;
    codes.unit = top / float(kTopScale);
    for (int s = 0; s < kSubs; ++s) {
        const Ints code = nearest(inverse * values[s]) & 0xff;
        codes.code[s] = select(code > kTopScale, kTopScale - Ints{}, code);
    }
    return codes;
}

inline Ints at_most_top(Ints code) { return select(code > kTopScale, kTopScale - Ints{}, code); }

// The same with the step and the codes searched for: first the best of 9 steps, then every code is
// moved alone, up to 5 rounds, as long as the weighted fit gains.
Codes codes_by_search(const Floats *values, const Floats *w) {
    Floats top = {};
    for (int s = 0; s < kSubs; ++s) top = larger(top, values[s]);
    const Ints empty = top < kTiny;

    Floats inverse = float(kTopScale) / top;
    Floats least = {};
    Floats scale = 1.0f / inverse;
    for (int s = 0; s < kSubs; ++s) {
        const Ints code = nearest(inverse * values[s]) & 0xff;
        const Floats error = values[s] - scale * to_floats(code);
        least += w[s] * error * error;
    }
    for (int i = -4; i <= 4; ++i) {
        if (i == 0) continue;
        const Floats trial = (0.1f * i + kTopScale) / top;
        scale = 1.0f / trial;
        Floats sum = {};
        for (int s = 0; s < kSubs; ++s) {
            const Ints code = at_most_top(nearest(trial * values[s]));
            const Floats error = values[s] - scale * to_floats(code);
            sum += w[s] * error * error;
        }
        const Ints better = sum < least;
        least = select(better, sum, least);
        inverse = select(better, trial, inverse);
    }

    Codes codes;
    Floats sum_lx = {}, sum_ll = {};
    for (int s = 0; s < kSubs; ++s) {
        const Ints code = at_most_top(nearest(inverse * values[s]));
        codes.code[s] = code & 0xff;
        const Floats l = to_floats(code);
        sum_lx += w[s] * values[s] * l;
        sum_ll += w[s] * l * l;
    }
    for (int round = 0; round < 5; ++round) {
        Ints changed = {};
        for (int s = 0; s < kSubs; ++s) {
            const Floats l = to_floats(codes.code[s]);
            Floats lx = sum_lx - w[s] * values[s] * l;
            Floats ll = sum_ll - w[s] * l * l;
            const Ints code = at_most_top(nearest(values[s] * ll / lx));
            Ints better = (lx > 0) & (ll > 0) & (code != codes.code[s]);
            const Floats m = to_floats(code);
            lx += w[s] * values[s] * m;
            ll += w[s] * m * m;
            better &= lx * lx * sum_ll > sum_lx * sum_lx * ll;
            codes.code[s] = select(better, code & 0xff, codes.code[s]);
            sum_lx = select(better, lx, sum_lx);
            sum_ll = select(better, ll, sum_ll);
            changed |= better;
        }
        if (!any(changed)) break;  // a lane without a change has reached its end
    }
    codes.unit = select(sum_ll > 0, sum_lx / sum_ll, Floats{});
    codes.unit = select(empty, Floats{}, codes.unit);
    for (Ints &code : codes.code) code = select(empty, Ints{}, code);
    return codes;
}

// 16 codes of 6 bits in 12 bytes: scale and offset of the first four sub-blocks fill the low 6
// bits of bytes 0..3 and 4..7; the last four have their low 4 bits in bytes 8..11 and their high
// 2 bits on top of the first eight bytes.
void pack_codes(const Ints *scales, const Ints *offsets, Ints *packed) {
    for (int s = 0; s < 4; ++s) {
        packed[s] = scales[s] | (scales[s + 4] >> 4) << 6;
        packed[s + 4] = offsets[s] | (offsets[s + 4] >> 4) << 6;
        packed[s + 8] = (scales[s + 4] & 15) | (offsets[s + 4] & 15) << 4;
    }
    for (int k = 0; k < 12; ++k) packed[k] &= 0xff;
}

// What a reader will find; differs from what went in where a code had more than 6 bits.
void unpack_codes(const Ints *packed, Ints *scales, Ints *offsets) {
    for (int s = 0; s < 4; ++s) {
        scales[s] = packed[s] & 63;
        offsets[s] = packed[s + 4] & 63;
        scales[s + 4] = (packed[s + 8] & 15) | (packed[s] >> 6) << 4;
        offsets[s + 4] = (packed[s + 8] >> 4) | (packed[s + 4] >> 6) << 4;
    }
}

// Levels under the block's final scales, one int per weight.
template <int kTop>
void final_levels(const Floats *x, const AffineFit *fits, const Ints *scales, const Ints *offsets,
                  Floats d, Floats dmin, Ints *levels) {
    for (int s = 0; s < kSubs; ++s) {
        const Floats scale = d * to_floats(scales[s]);
        const Floats offset = dmin * to_floats(offsets[s]);
        const Ints vanished = scale == 0;  // ggml leaves the levels of the search
        for (int j = s * kSub; j < (s + 1) * kSub; ++j) {
            levels[j] = clamp(nearest((x[j] + offset) / scale), 0, kTop);
        }
        if (!any(vanished)) continue;
        for (int j = s * kSub; j < (s + 1) * kSub; ++j) {
            const Ints searched = clamp(nearest(fits[s].inverse * (x[j] - fits[s].base)), 0, kTop);
            levels[j] = select(vanished, searched, levels[j]);
        }
    }
}

// The part that Q4_K and Q5_K share. Fills d, dmin and the codes (the first 16 bytes of a block)
// and the levels.
template <int kTop>
void quantize_affine(const Tile<256> &tile, const Search &plain, const Search &weighted,
                     bool limit_codes, Ints *head, Ints *levels) {
    AffineFit fits[kSubs];
    Floats scales[kSubs], offsets[kSubs], sub_weights[kSubs], w[kSub];
    Floats energy = {};
    if (tile.weighted) {
        for (const Floats &x : tile.x) energy += x * x;
        energy = 2.0f * energy / 256.0f;
    }
    for (int s = 0; s < kSubs; ++s) {
        const Floats *x = tile.x + s * kSub;
        if (tile.weighted) {
            const Floats *importance = tile.importance + s * kSub;
            Floats sum = {};
            for (int j = 0; j < kSub; ++j) {
                w[j] = importance[j] * square_root(energy + x[j] * x[j]);
                sum += w[j];
            }
            sub_weights[s] = sum;
        } else {
            Floats sum = {};
            for (int j = 0; j < kSub; ++j) sum += x[j] * x[j];
            const Floats average = square_root(sum / float(kSub));
            for (int j = 0; j < kSub; ++j) w[j] = average + absolute(x[j]);
        }
        fits[s] = fit_affine<kTop>(x, w, tile.weighted ? weighted : plain);
        scales[s] = fits[s].scale;
        offsets[s] = fits[s].offset;
    }
    Codes scale_codes, offset_codes;
    if (tile.weighted) {
        scale_codes = codes_by_search(scales, sub_weights);
        offset_codes = codes_by_search(offsets, sub_weights);
        for (int s = 0; limit_codes && s < kSubs; ++s) {
            scale_codes.code[s] = at_most_top(scale_codes.code[s]);
            offset_codes.code[s] = at_most_top(offset_codes.code[s]);
        }
    } else {
        scale_codes = codes_by_largest(scales);
        offset_codes = codes_by_largest(offsets);
    }
    const Ints d = to_half(scale_codes.unit), dmin = to_half(offset_codes.unit);
    head[0] = d;
    head[1] = d >> 8;
    head[2] = dmin;
    head[3] = dmin >> 8;
    pack_codes(scale_codes.code, offset_codes.code, head + 4);
    Ints kept_scales[kSubs], kept_offsets[kSubs];
    unpack_codes(head + 4, kept_scales, kept_offsets);
    final_levels<kTop>(tile.x, fits, kept_scales, kept_offsets, from_half(d), from_half(dmin),
                       levels);
}

// Low halves of the levels: 64 weights in 32 bytes, the first 32 in the low nibbles.
void pack_nibbles(const Ints *levels, Ints *packed) {
    for (int j = 0; j < 128; ++j) {
        const Ints *first = levels + j / 32 * 64 + j % 32;
        packed[j] = (first[0] & 15) | (first[32] & 15) << 4;
    }
}

struct Q4K {
    static constexpr int kBlock = 256, kBytes = 144;  // d, dmin, codes 12, levels 128

    static void quantize(const Tile<256> &tile, Ints *bytes) {
        Ints levels[256];
        quantize_affine<15>(tile, {-1.0f, 0.1f, 20}, {-0.9f, 0.05f, 36}, false, bytes, levels);
        pack_nibbles(levels, bytes + 16);
    }
};

struct Q5K {
    static constexpr int kBlock = 256, kBytes = 176;  // d, dmin, codes 12, fifth bits 32, levels 128

    static void quantize(const Tile<256> &tile, Ints *bytes) {
        Ints levels[256];
        quantize_affine<31>(tile, {-0.5f, 0.1f, 15}, {-0.9f, 0.05f, 36}, true, bytes, levels);
        for (int j = 0; j < kSub; ++j) {  // bit s of byte j belongs to weight j of sub-block s
            Ints fifth = {};
            for (int s = 0; s < kSubs; ++s) fifth |= (levels[s * kSub + j] >> 4) << s;
            bytes[16 + j] = fifth;
        }
        pack_nibbles(levels, bytes + 48);
    }
};

}  // namespace
