// The chains that are kept, by shape.
#pragma once

#include "hot/chain.h"

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace hot {

// Each lies in a ggml context of its own. A chain for one token belongs to a layer, so that a device
// may keep a launched graph for it; others are pointed at the layer before each run.
class chain_cache {
  public:
    chain * find(uint64_t key);
    // As build_chain; null if there is no memory for it.
    chain * build(uint64_t key, ggml_tensor * const weights[N_PARTS], int64_t n_tokens, int64_t n_pairs, int64_t n_dst_rows);
    // Makes the halves of the chain that was built last.
    bool halve(chain & built) { return hot::halve(contexts_.back().get(), built); }
    void    clear();

  private:
    std::unordered_map<uint64_t, chain> chains_;
    std::vector<context_ptr>            contexts_;
};

}  // namespace hot
