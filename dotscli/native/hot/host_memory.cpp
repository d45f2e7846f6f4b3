#include "hot/host_memory.h"

#include <chrono>
#include <cstdlib>

namespace hot {

uint64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

host_block::~host_block() {
    clear();
}

void host_block::clear() {
    if (pinned != nullptr) {
        ggml.ggml_backend_buffer_free(pinned);
    } else {
        free(data);
    }
    data   = nullptr;
    pinned = nullptr;
    nbytes = 0;
}

bool host_block::ensure(size_t wanted, ggml_backend_buffer_type * pinned_type) {
    if (wanted <= nbytes) {
        return true;
    }
    clear();
    wanted = padded(wanted);
    if (pinned_type != nullptr) {
        pinned = ggml.ggml_backend_buft_alloc_buffer(pinned_type, wanted);
    }
    data   = static_cast<char *>(pinned != nullptr ? ggml.ggml_backend_buffer_get_base(pinned) : aligned_alloc(HOST_ALIGNMENT, wanted));
    nbytes = data != nullptr ? wanted : 0;
    return data != nullptr;
}

chain_cache::~chain_cache() {
    clear();
}

chain * chain_cache::find(uint64_t key) {
    const auto found = chains.find(key);
    return found != chains.end() ? &found->second : nullptr;
}

chain & chain_cache::build(uint64_t key, ggml_tensor * const weights[N_PARTS], int64_t n_tokens, int64_t n_pairs, int64_t n_dst_rows) {
    contexts.push_back(ggml.ggml_init({ chain_meta_nbytes(), nullptr, true }));
    chain & built = chains[key];
    built         = build_chain(contexts.back(), weights, n_tokens, n_pairs, n_dst_rows);
    return built;
}

void chain_cache::clear() {
    chains.clear();
    for (ggml_context * ctx : contexts) {
        ggml.ggml_free(ctx);
    }
    contexts.clear();
}

void pair_list::reset(size_t capacity) {
    n = 0;
    if (tokens.size() < capacity) {
        tokens.resize(capacity);
        experts.resize(capacity);
        rows.resize(capacity);
    }
}

void pair_list::add(int32_t token, int32_t expert, int32_t row) {
    tokens[n]  = token;
    experts[n] = expert;
    rows[n]    = row;
    n++;
}

}  // namespace hot
