#include "hot/chain_cache.h"

namespace hot {

chain * chain_cache::find(uint64_t key) {
    const auto found = chains_.find(key);
    return found != chains_.end() ? &found->second : nullptr;
}

chain * chain_cache::build(uint64_t key, ggml_tensor * const weights[N_PARTS], int64_t n_tokens, int64_t n_pairs, int64_t n_dst_rows) {
    contexts_.push_back(new_context(chain_meta_nbytes()));
    const chain built = build_chain(contexts_.back().get(), weights, n_tokens, n_pairs, n_dst_rows);
    if (built.graph == nullptr) {
        return nullptr;
    }
    return &(chains_[key] = built);
}

void chain_cache::clear() {
    chains_.clear();
    contexts_.clear();
}

}  // namespace hot
