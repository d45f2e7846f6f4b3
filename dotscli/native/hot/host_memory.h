// What a context computes in and with: host memory, cached chains, lists of pairs.
#pragma once

#include "hot/ggml_calls.h"
#include "hot/chain.h"

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace hot {

constexpr size_t HOST_ALIGNMENT = 64;

inline size_t padded(size_t nbytes) {
    return (nbytes + HOST_ALIGNMENT - 1) / HOST_ALIGNMENT * HOST_ALIGNMENT;
}

uint64_t now_ns();

// Memory that both sides of a transfer can name: pinned where the device offers it.
struct host_block {
    char *                data   = nullptr;
    size_t                nbytes = 0;
    ggml_backend_buffer * pinned = nullptr;

    ~host_block();
    bool ensure(size_t wanted, ggml_backend_buffer_type * pinned_type);  // contents are lost
    void clear();
};

// Chains by shape, each in a ggml context of its own. A chain for one token belongs to a layer, so
// that a device may keep a launched graph for it; others are pointed at the layer before each run.
struct chain_cache {
    std::unordered_map<uint64_t, chain> chains;
    std::vector<ggml_context *>         contexts;

    ~chain_cache();
    chain * find(uint64_t key);
    chain & build(uint64_t key, ggml_tensor * const weights[N_PARTS], int64_t n_tokens, int64_t n_pairs, int64_t n_dst_rows);
    void    clear();
};

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

}  // namespace hot
