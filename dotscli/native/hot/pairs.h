// Pairs (token, expert) of one layer of one batch, and on which side each of them is computed.
#pragma once

#include "hot/costs.h"
#include "hot/layer.h"

#include <cstdint>
#include <vector>

namespace hot {

// Up to here a batch takes cached chains and memory that was set aside at the start: 8 tokens of a
// model that uses 8 experts. Larger ones build their graphs anew, which their size makes cheap.
constexpr int64_t SMALL_PAIRS = 64;

inline bool is_small(int64_t n_tokens, int64_t n_pairs) {
    return n_tokens <= DECODE_TOKENS && n_pairs <= SMALL_PAIRS;
}

// The pairs of one side. On the CPU's they stand in the order of ids; on the device's, the residents'
// first, and then wave by wave those of streamed experts.
struct pair_list {
    std::vector<int32_t> tokens;
    std::vector<int32_t> experts;  // on the device side: slots
    std::vector<int32_t> rows;     // of down's result: token * n_used + position
    int64_t              n = 0;

    void reset(size_t capacity);
    void add(int32_t token, int32_t expert, int32_t row);
};

// Experts that are streamed together.
struct stream_wave {
    size_t  first_expert = 0;  // in the list of those that are streamed
    size_t  n_experts    = 0;
    int64_t first_pair   = 0;  // in the device's list of pairs
    int64_t n_pairs      = 0;
};

// Who is resident is hot. Ids that no expert has are cold: ggml has something to say about them.
void divide_by_residency(const moe_layer & layer, const ggml_tensor * ids, pair_list & hot, pair_list & cold);

// Every pair is cold.
void all_cold(const ggml_tensor * ids, pair_list & hot, pair_list & cold);

// Puts pairs in the order of these experts, which are all that they have.
//   first_pair: of each expert, and the end
//   by_expert, spare: for working with
void group_pairs(const std::vector<int32_t> & experts, int64_t n_experts, std::vector<int32_t> & by_expert,
                 std::vector<int64_t> & first_pair, pair_list & pairs, pair_list & spare);

// How many pairs each expert has, those with most first. False if an id is no expert's.
//   by_expert: [n_experts], for counting
bool loads_of(const pair_list & pairs, int64_t n_experts, std::vector<int32_t> & by_expert, std::vector<expert_load> & loads);

// Takes the streamed experts' pairs from the CPU's list and appends them to the device's, by waves of
// so many experts.
void move_streamed(const std::vector<expert_load> & streamed, int64_t n_experts, size_t wave_size, std::vector<int32_t> & by_expert,
                   pair_list & hot, pair_list & cold, std::vector<stream_wave> & waves);

}  // namespace hot
