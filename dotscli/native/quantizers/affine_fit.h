// The search for a scale and an offset of 32 weights, x ~ scale * level - offset, that Q4_K and
// Q5_K make 8 times per block. ggml's make_qkx2_quants and make_qkx3_quants (ggml-quants.c), which
// differ only in the weights and the range they are called with.
#pragma once

#include "tile.h"

namespace {

constexpr int kSub = 32;  // weights per sub-block

// How far the search goes: inverse scales (top level + first + step * i) / width, i in 0..last.
struct Range {
    float first, step;
    int last;
};

// Least squares over levels 0..kTop: for a number of inverse scales, rounds the weights to levels,
// solves for the scale and offset that fit these levels best, and keeps the best of all.
//
// Where all weights are the same, and not above zero, ggml returns at once with a scale and levels
// of 0. That comes out here too: the inverse is infinite, the scale 1 / inf = 0, the levels are
// nearest(inf * 0) = nearest(NaN) = 0, and no round has a determinant above 0.
template <int kTop> struct AffineFit {
    const Floats *x, *w;   // weights, and what their errors weigh
    Floats low, high;      // the smallest and the largest weight
    Floats sum_w, sum_wx;

    // The best so far. Its levels are not kept, they are nearest((x - origin) * best_inverse) and
    // hardly ever wanted. Every better base (the offset, negated) starts the next round.
    Floats scale, base, least, best_inverse, origin;

    // The current round.
    Floats inverse, sum_l, sum_ll, sum_lx, determinant, new_scale, new_base, error;
    Floats levels[kSub];

    template <bool kWraps = true> Floats level(int j) const {
        const Floats l = inverse * (x[j] - base);
        return kWraps ? nearest_within(l, 0, kTop) : small_nearest_within(l, 0, kTop);
    }

    void start(const Floats *weights, const Floats *error_weights) {
        x = weights;
        w = error_weights;
        low = high = x[0];
        sum_w = w[0];
        sum_wx = w[0] * x[0];
        for (int j = 1; j < kSub; ++j) {
            low = smaller(x[j], low);
            high = larger(x[j], high);
            sum_w += w[j];
            sum_wx += w[j] * x[j];
        }
        base = origin = select(low > 0, Floats{}, low);  // offsets are stored without a sign
        inverse = best_inverse = float(kTop) / (high - base);
        scale = 1.0f / inverse;
        least = Floats{};
        for (int j = 0; j < kSub; ++j) {
            const Floats e = scale * level(j) + base - x[j];
            least += w[j] * (e * e);
        }
    }

    // Returns the lanes in which a level, before it is limited, may leave +-2^22.
    Ints begin_round(float numerator) {
        inverse = numerator / (high - base);
        sum_l = sum_ll = sum_lx = Floats{};
        const Floats top = absolute(inverse * (high - base));
        const Floats bottom = absolute(inverse * (low - base));
        return ~((top < 0x1p21f) & (bottom < 0x1p21f));
    }

    template <bool kWraps> void add_level(int j) {
        const Floats l = levels[j] = level<kWraps>(j);
        const Floats wl = w[j] * l;
        sum_l += wl;
        sum_ll += wl * l;
        sum_lx += wl * x[j];
    }

    void solve() {
        determinant = sum_w * sum_ll - sum_l * sum_l;
        new_scale = (sum_w * sum_lx - sum_wx * sum_l) / determinant;
        new_base = (sum_ll * sum_wx - sum_l * sum_lx) / determinant;
        const Ints positive = new_base > 0;
        new_scale = select(positive, sum_lx / sum_ll, new_scale);
        new_base = select(positive, Floats{}, new_base);
        error = Floats{};
    }

    void add_error(int j) {
        const Floats e = new_scale * levels[j] + new_base - x[j];
        error += w[j] * (e * e);
    }

    void keep_better() {
        const Ints better = (determinant > 0) & (error < least);
        least = select(better, error, least);
        best_inverse = select(better, inverse, best_inverse);
        origin = select(better, base, origin);
        scale = select(better, new_scale, scale);
        base = select(better, new_base, base);
    }

    Ints final_level(int j) const {
        return to_ints(nearest_within(best_inverse * (x[j] - origin), 0, kTop));
    }
};

template <bool kWraps, int kTop>
inline void add_levels(AffineFit<kTop> &a, AffineFit<kTop> &b) {
    for (int j = 0; j < kSub; ++j) {
        a.template add_level<kWraps>(j);
        b.template add_level<kWraps>(j);
    }
}

// Searches for two sub-blocks at once. In either of them each addition waits for the one before,
// and each round starts where the last one ended: a processor that had only one such chain to
// follow would be idle for most of the time.
template <int kTop>
void search(AffineFit<kTop> &first, AffineFit<kTop> &second, const Range &range) {
    AffineFit<kTop> a = first, b = second;  // copies whose parts can stay in registers
    for (int i = 0; i <= range.last; ++i) {
        const float numerator = range.first + range.step * i + kTop;
        if (any(a.begin_round(numerator) | b.begin_round(numerator))) {
            add_levels<true>(a, b);
        } else {
            add_levels<false>(a, b);
        }
        a.solve();
        b.solve();
        for (int j = 0; j < kSub; ++j) {
            a.add_error(j);
            b.add_error(j);
        }
        a.keep_better();
        b.keep_better();
    }
    first = a;
    second = b;
}

}  // namespace
