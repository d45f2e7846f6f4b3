#include "hot/pairs.h"

#include <algorithm>

namespace hot {

void pair_list::reset(size_t capacity) {
    n = 0;
    if (tokens.size() < capacity) {
        tokens.resize(capacity);
    }
    experts.resize(tokens.size());
    rows.resize(tokens.size());
}

void pair_list::add(int32_t token, int32_t expert, int32_t row) {
    tokens[n]  = token;
    experts[n] = expert;
    rows[n]    = row;
    n++;
}

void divide_by_residency(const moe_layer & layer, const ggml_tensor * ids, pair_list & hot, pair_list & cold) {
    const int64_t n_used   = ids->ne[0];
    const int64_t n_tokens = ids->ne[1];
    const size_t  capacity = std::max(n_used * n_tokens, SMALL_PAIRS);
    hot.reset(capacity);
    cold.reset(capacity);
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t u = 0; u < n_used; u++) {
            const int32_t id   = expert_at(ids, u, t);
            const int32_t slot = id >= 0 && id < layer.n_experts ? layer.slot_of[id] : -1;
            if (slot >= 0) {
                hot.add(t, slot, t * n_used + u);
            } else {
                cold.add(t, id, t * n_used + u);
            }
        }
    }
}

void all_cold(const ggml_tensor * ids, pair_list & hot, pair_list & cold) {
    const int64_t n_used   = ids->ne[0];
    const int64_t n_tokens = ids->ne[1];
    const size_t  capacity = std::max(n_used * n_tokens, SMALL_PAIRS);
    hot.reset(capacity);
    cold.reset(capacity);
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t u = 0; u < n_used; u++) {
            cold.add(t, expert_at(ids, u, t), t * n_used + u);
        }
    }
}

void group_pairs(const std::vector<int32_t> & experts, int64_t n_experts, std::vector<int32_t> & by_expert,
                 std::vector<int64_t> & first_pair, pair_list & pairs, pair_list & spare) {
    first_pair.assign(experts.size() + 1, 0);
    by_expert.assign(n_experts, 0);
    for (size_t i = 0; i < experts.size(); i++) {
        by_expert[experts[i]] = int32_t(i);
    }
    for (int64_t i = 0; i < pairs.n; i++) {
        first_pair[by_expert[pairs.experts[i]] + 1]++;
    }
    for (size_t i = 0; i < experts.size(); i++) {
        first_pair[i + 1] += first_pair[i];
    }
    std::vector<int64_t> next(first_pair.begin(), first_pair.end() - 1);
    spare.reset(pairs.tokens.size());
    for (int64_t i = 0; i < pairs.n; i++) {
        const int64_t at  = next[by_expert[pairs.experts[i]]]++;
        spare.tokens[at]  = pairs.tokens[i];
        spare.experts[at] = pairs.experts[i];
        spare.rows[at]    = pairs.rows[i];
    }
    spare.n = pairs.n;
    std::swap(pairs, spare);
}

bool loads_of(const pair_list & pairs, int64_t n_experts, std::vector<int32_t> & by_expert, std::vector<expert_load> & loads) {
    by_expert.assign(n_experts, 0);
    loads.clear();
    for (int64_t i = 0; i < pairs.n; i++) {
        const int32_t expert = pairs.experts[i];
        if (expert < 0 || expert >= n_experts) {
            return false;
        }
        by_expert[expert]++;
    }
    for (int32_t expert = 0; expert < n_experts; expert++) {
        if (by_expert[expert] > 0) {
            loads.push_back({ expert, by_expert[expert] });
        }
    }
    std::sort(loads.begin(), loads.end(), [](const expert_load & a, const expert_load & b) {
        return a.n_pairs != b.n_pairs ? a.n_pairs > b.n_pairs : a.expert < b.expert;
    });
    return true;
}

void move_streamed(const std::vector<expert_load> & streamed, int64_t n_experts, size_t wave_size, std::vector<int32_t> & by_expert,
                   pair_list & hot, pair_list & cold, std::vector<stream_wave> & waves) {
    waves.clear();
    by_expert.assign(n_experts, -1);
    int64_t first_pair = hot.n;
    for (size_t i = 0; i < streamed.size(); i++) {
        if (i % wave_size == 0) {
            waves.push_back({ i, 0, first_pair, 0 });
        }
        by_expert[streamed[i].expert] = int32_t(i);
        waves.back().n_experts++;
        waves.back().n_pairs += streamed[i].n_pairs;
        first_pair += streamed[i].n_pairs;
    }
    std::vector<int64_t> next;
    for (const stream_wave & wave : waves) {
        next.push_back(wave.first_pair);
    }
    int64_t n_kept = 0;
    for (int64_t i = 0; i < cold.n; i++) {
        const int32_t number = by_expert[cold.experts[i]];
        pair_list &   to     = number >= 0 ? hot : cold;
        const int64_t at     = number >= 0 ? next[number / wave_size]++ : n_kept++;
        to.tokens[at]        = cold.tokens[i];
        to.experts[at]       = number >= 0 ? int32_t(number % wave_size) : cold.experts[i];
        to.rows[at]          = cold.rows[i];
    }
    hot.n  = first_pair;
    cold.n = n_kept;
}

}  // namespace hot
