// The chains of a context: kept for small batches, made for once for large ones, and memory for both.
#include "hot/context.h"

#include <algorithm>

namespace hot {

ggml_context * hot_context::transient() {
    if (transient_ == nullptr) {
        transient_ = new_context(4 * chain_meta_nbytes());
    } else {
        ggml.ggml_reset(transient_.get());
    }
    return transient_.get();
}

// n_used is a part of the shape: a warm-up run uses every expert, the next one only a few.
uint64_t hot_context::chain_key(const moe_layer & layer, int64_t n_tokens, int64_t n_used, int64_t n_pairs) const {
    const int owner = n_tokens == 1 ? layer.index : class_of_[layer.index];
    return uint64_t(owner) << 32 | uint64_t(n_tokens) << 24 | uint64_t(n_used) << 16 | uint64_t(n_pairs);
}

// Builds the chains for every number of pairs that a small batch of this layer can have, at its first
// appearance: nothing is allocated when a token happens to need another number of them.
bool hot_context::prepare_host(moe_layer & layer, int64_t n_tokens, int64_t n_used) {
    const int64_t n_pairs = n_tokens * n_used;
    const chain   largest = build_chain(transient(), layer.host, DECODE_TOKENS, SMALL_PAIRS, SMALL_PAIRS);
    if (largest.graph == nullptr) {
        return false;
    }
    const size_t nbytes = host_scratch_nbytes(largest);
    if (nbytes > host_scratch_.nbytes) {
        host_chains_.clear();
        if (!host_scratch_.ensure(nbytes, nullptr)) {
            return false;
        }
    }
    for (int64_t n = n_pairs; n >= 1; n--) {  // who finds the chain for one pair has all of them
        const uint64_t key   = chain_key(layer, n_tokens, n_used, n);
        chain *        built = host_chains_.build(key, layer.host, n_tokens, n, n_tokens == 1 ? 0 : n_pairs);
        if (built == nullptr || (layer.tiered && !host_chains_.halve(*built))) {
            host_chains_.clear();
            return false;
        }
        place_on_host(*built, host_scratch_.data);
    }
    return true;
}

bool hot_context::grow_device(ggml_backend_buffer *& buffer, size_t nbytes) {
    if (buffer != nullptr && ggml.ggml_backend_buffer_get_size(buffer) >= nbytes) {
        return true;
    }
    if (buffer != nullptr) {
        ggml.ggml_backend_buffer_free(buffer);
        buffer = nullptr;
    }
    if (nbytes <= ggml.ggml_backend_buft_get_max_size(device_buft_)) {
        buffer = ggml.ggml_backend_buft_alloc_buffer(device_buft_, nbytes);
    }
    return buffer != nullptr;
}

bool hot_context::prepare_device(moe_layer & layer, int64_t n_tokens, int64_t n_used) {
    ggml_context * ctx    = transient();
    const chain    many   = build_chain(ctx, layer.slab.weights, DECODE_TOKENS, SMALL_PAIRS, 0);
    const chain    single = build_chain(ctx, layer.slab.weights, 1, SMALL_PAIRS, 0);
    if (many.graph == nullptr || single.graph == nullptr) {
        return false;
    }
    const size_t nbytes = std::max(device_scratch_nbytes(many, device_buft_), device_scratch_nbytes(single, device_buft_));
    if (device_scratch_ == nullptr || nbytes > ggml.ggml_backend_buffer_get_size(device_scratch_)) {
        device_chains_.clear();
        if (!grow_device(device_scratch_, nbytes)) {
            return false;
        }
    }
    for (int64_t n = n_tokens * n_used; n >= 1; n--) {
        chain * built = device_chains_.build(chain_key(layer, n_tokens, n_used, n), layer.slab.weights, n_tokens, n, 0);
        if (built == nullptr || !place_on_device(*built, device_scratch_)) {
            device_chains_.clear();
            return false;
        }
    }
    return true;
}

chain hot_context::host_chain(moe_layer & layer, int64_t n_tokens, int64_t n_used, int64_t n_pairs) {
    const int64_t n_rows = n_tokens * n_used;
    if (!is_small(n_tokens, n_rows)) {
        chain built = build_chain(transient(), layer.host, n_tokens, n_pairs, n_rows);
        if (built.graph == nullptr || !host_bulk_.ensure(host_scratch_nbytes(built), nullptr)) {
            return chain();
        }
        place_on_host(built, host_bulk_.data);
        return built;
    }
    chain * found = host_chains_.find(chain_key(layer, n_tokens, n_used, n_pairs));
    set_weights(*found, layer.host);
    return *found;
}

// Device memory for the job with most pairs. One job computes at a time, and x lies where it lies for
// every number of pairs, so all jobs of a layer share it.
bool hot_context::reserve_bulk(const layer_run & run, int64_t n_pairs) {
    const chain largest = build_chain(transient(), run.layer.host, run.n_tokens, n_pairs, 0);
    if (largest.graph == nullptr) {
        run.model->say_once("prompts of this length run on the CPU: no memory left to build graphs in");
        return false;
    }
    const size_t nbytes = device_scratch_nbytes(largest, device_buft_);
    if (nbytes < device_bulk_refused_ && grow_device(device_bulk_, nbytes)) {
        return true;
    }
    device_bulk_refused_ = std::min(device_bulk_refused_, nbytes);
    run.model->say_once("prompts of this length run on the CPU: no device memory left to compute them in");
    return false;
}

chain hot_context::job_chain(const layer_run & run, ggml_tensor * const weights[N_PARTS], int64_t n_pairs, int which) {
    context_ptr & ctx = job_ctx_[which];
    if (ctx == nullptr) {
        ctx = new_context(chain_meta_nbytes());
    } else {
        ggml.ggml_reset(ctx.get());
    }
    chain built = build_chain(ctx.get(), weights, run.n_tokens, n_pairs, 0);
    return built.graph != nullptr && place_on_device(built, device_bulk_) ? built : chain();
}

}  // namespace hot
