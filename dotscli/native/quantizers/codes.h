// The 8 scales and 8 offsets of a Q4_K or Q5_K block as 6-bit codes: how they are found (without
// importance as in ggml's quantize_row_q4_K_ref, with it as in make_qp_quants) and how they lie in
// the block (get_scale_min_k4, all in ggml-quants.c).
#pragma once

#include "lanes.h"

namespace {

constexpr int kSubs = 8;         // sub-blocks per block
constexpr float kTopCode = 63;

struct Codes {
    Floats unit;       // what one step is worth
    Ints code[kSubs];  // 0..255: ggml keeps them in a byte, and what is more than 6 bits spoils
                       // its neighbours the same way here
};

inline Floats at_most_top(Floats code) { return smaller(code, all(kTopCode)); }
inline Ints as_byte(Floats code) { return to_ints(code) & 0xff; }

inline void limit(Codes &codes) {
    for (Ints &code : codes.code) code = to_ints(at_most_top(to_floats(code)));
}

// In steps of the largest value's 63rd part.
Codes codes_by_largest(const Floats *values) {
    Floats top = {};
    for (int s = 0; s < kSubs; ++s) top = larger(values[s], top);
    const Floats inverse = select(top > 0, kTopCode / top, Floats{});
    Codes codes;
    codes.unit = top / kTopCode;
    for (int s = 0; s < kSubs; ++s) codes.code[s] = as_byte(nearest(inverse * values[s]));
    limit(codes);
    return codes;
}

// With the step and the codes searched for: first the best of 9 steps, then every code is moved
// alone, up to 5 rounds, as long as the fit gains. w[s] is what sub-block s weighs.
Codes codes_by_search(const Floats *values, const Floats *w) {
    Floats top = {};
    for (int s = 0; s < kSubs; ++s) top = larger(top, values[s]);
    const Ints empty = top < kTiny;

    Floats inverse = kTopCode / top;
    Floats scale = 1.0f / inverse;
    Floats least = {};
    for (int s = 0; s < kSubs; ++s) {
        const Floats code = to_floats(as_byte(nearest(inverse * values[s])));
        const Floats error = values[s] - scale * code;
        least += w[s] * error * error;
    }
    for (int i = -4; i <= 4; ++i) {
        if (i == 0) continue;
        const Floats trial = (0.1f * i + kTopCode) / top;
        scale = 1.0f / trial;
        Floats sum = {};
        for (int s = 0; s < kSubs; ++s) {
            const Floats code = at_most_top(nearest(trial * values[s]));
            const Floats error = values[s] - scale * code;
            sum += w[s] * error * error;
        }
        const Ints better = sum < least;
        least = select(better, sum, least);
        inverse = select(better, trial, inverse);
    }

    Codes codes;
    Floats sum_lx = {}, sum_ll = {};
    for (int s = 0; s < kSubs; ++s) {
        const Floats code = at_most_top(nearest(inverse * values[s]));
        codes.code[s] = as_byte(code);
        sum_lx += w[s] * values[s] * code;
        sum_ll += w[s] * code * code;
    }
    for (int round = 0; round < 5; ++round) {
        Ints changed = {};
        for (int s = 0; s < kSubs; ++s) {
            const Floats old_code = to_floats(codes.code[s]);
            Floats lx = sum_lx - w[s] * values[s] * old_code;
            Floats ll = sum_ll - w[s] * old_code * old_code;
            const Floats code = at_most_top(nearest(values[s] * ll / lx));
            Ints better = (lx > 0) & (ll > 0) & (code != old_code);
            lx += w[s] * values[s] * code;
            ll += w[s] * code * code;
            better &= lx * lx * sum_ll > sum_lx * sum_lx * ll;
            codes.code[s] = select(better, as_byte(code), codes.code[s]);
            sum_lx = select(better, lx, sum_lx);
            sum_ll = select(better, ll, sum_ll);
            changed |= better;
        }
        if (!any(changed)) break;  // a lane without a change has reached its end
    }
    codes.unit = select(empty | ~(sum_ll > 0), Floats{}, sum_lx / sum_ll);
    for (Ints &code : codes.code) code = select(empty, Ints{}, code);
    return codes;
}

// 16 codes in 12 bytes: the first four scales and offsets fill the low 6 bits of bytes 0..3 and
// 4..7; of the last four the low 4 bits are in bytes 8..11, the high 2 bits on top of the others.
inline void pack_codes(const Codes &scales, const Codes &offsets, Ints *packed) {
    for (int s = 0; s < 4; ++s) {
        const Ints scale = scales.code[s + 4], offset = offsets.code[s + 4];
        packed[s] = (scales.code[s] | (scale >> 4) << 6) & 0xff;
        packed[s + 4] = (offsets.code[s] | (offset >> 4) << 6) & 0xff;
        packed[s + 8] = (scale & 15) | (offset & 15) << 4;
    }
}

// What a reader finds.
inline void unpack_codes(const Ints *packed, Ints *scales, Ints *offsets) {
    for (int s = 0; s < 4; ++s) {
        scales[s] = packed[s] & 63;
        offsets[s] = packed[s + 4] & 63;
        scales[s + 4] = (packed[s + 8] & 15) | (packed[s] >> 6) << 4;
        offsets[s + 4] = (packed[s + 8] >> 4) | (packed[s + 4] >> 6) << 4;
    }
}

}  // namespace
