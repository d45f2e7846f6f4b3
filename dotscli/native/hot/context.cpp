#include "hot/context.h"

#include <algorithm>
#include <cstring>

namespace hot {

// Functions that only a CPU backend has are asked for by name.
static void * cpu_function(ggml_backend * backend, const char * name) {
    ggml_backend_reg * reg = ggml.ggml_backend_dev_backend_reg(ggml.ggml_backend_get_device(backend));
    return ggml.ggml_backend_reg_get_proc_address(reg, name);
}

static void set_backend_n_threads(ggml_backend * backend, int n_threads) {
    typedef void (*set_n_threads_t)(ggml_backend * backend, int n_threads);
    auto set = reinterpret_cast<set_n_threads_t>(cpu_function(backend, "ggml_backend_set_n_threads"));
    if (set != nullptr && n_threads > 0) {
        set(backend, n_threads);
    }
}

static void set_backend_threadpool(ggml_backend * backend, ggml_threadpool * threadpool) {
    typedef void (*set_threadpool_t)(ggml_backend * backend, ggml_threadpool * threadpool);
    auto set = reinterpret_cast<set_threadpool_t>(cpu_function(backend, "ggml_backend_cpu_set_threadpool"));
    if (set != nullptr && threadpool != nullptr) {
        set(backend, threadpool);
    }
}

hot_context::hot_context(ggml_backend * cpu, ggml_threadpool * threadpool) : cpu_(cpu), threadpool_(threadpool) {
    set_backend_threadpool(cpu_, threadpool_);
}

hot_context::~hot_context() {
    unbind();
    host_chains_.clear();
    for (ggml_context * ctx : { transient_, job_ctx_[0], job_ctx_[1] }) {
        if (ctx != nullptr) {
            ggml.ggml_free(ctx);
        }
    }
    ggml.ggml_backend_free(cpu_);
}

void hot_context::unbind() {
    device_chains_.clear();
    stream_ = nullptr;
    staging_.clear();
    for (ggml_backend_buffer ** buffer : { &device_scratch_, &device_bulk_ }) {
        if (*buffer != nullptr) {
            ggml.ggml_backend_buffer_free(*buffer);
            *buffer = nullptr;
        }
    }
    if (device_ != nullptr) {
        ggml.ggml_backend_free(device_);
        device_ = nullptr;
    }
    model_ = nullptr;
}

void hot_context::set_n_threads(int n_threads) {
    if (n_threads == n_threads_) {
        return;
    }
    n_threads_ = n_threads;
    set_backend_n_threads(cpu_, n_threads);
    if (device_ != nullptr) {
        set_backend_n_threads(device_, n_threads);
    }
}

ggml_context * hot_context::transient() {
    if (transient_ == nullptr) {
        transient_ = ggml.ggml_init({ 4 * chain_meta_nbytes(), nullptr, true });
    } else {
        ggml.ggml_reset(transient_);
    }
    return transient_;
}

int hot_context::forward(ggml_cgraph * graph) {
    return ggml.ggml_backend_graph_compute_async(cpu_, graph);
}

static bool same_shape(const moe_layer & a, const moe_layer & b) {
    for (int part = 0; part < N_PARTS; part++) {
        if (a.host[part]->type != b.host[part]->type || a.host[part]->ne[0] != b.host[part]->ne[0] ||
            a.host[part]->ne[1] != b.host[part]->ne[1] || a.host[part]->ne[2] != b.host[part]->ne[2]) {
            return false;
        }
    }
    return true;
}

bool hot_context::bind(const std::shared_ptr<hot_model> & model) {
    if (model_ == model) {
        return device_ != nullptr;
    }
    unbind();
    host_chains_.clear();
    model_  = model;
    device_ = ggml.ggml_backend_dev_init(model->device, nullptr);
    if (device_ == nullptr) {
        return false;
    }
    set_backend_n_threads(device_, n_threads_);
    set_backend_threadpool(device_, threadpool_);
    device_buft_ = ggml.ggml_backend_dev_buffer_type(model->device);
    pinned_buft_ = ggml.ggml_backend_dev_host_buffer_type(model->device);
    stream_      = std::make_unique<expert_stream>(model->device);

    const std::vector<moe_layer *> layers = model->layers();
    class_of_.assign(layers.empty() ? 0 : layers.back()->index + 1, -1);
    for (const moe_layer * layer : layers) {
        for (const moe_layer * earlier : layers) {
            if (same_shape(*earlier, *layer)) {
                class_of_[layer->index] = earlier->index;
                break;
            }
        }
    }
    return true;
}

void hot_context::split_pairs(moe_layer & layer, const ggml_tensor * ids) {
    const int64_t n_used   = ids->ne[0];
    const int64_t n_tokens = ids->ne[1];
    const size_t  capacity = std::max(n_used * n_tokens, SMALL_PAIRS);
    hot_.reset(capacity);
    cold_.reset(capacity);
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t u = 0; u < n_used; u++) {
            const int32_t id   = expert_at(ids, u, t);
            const int32_t slot = id >= 0 && id < layer.n_experts ? layer.slot_of[id] : -1;
            if (slot >= 0) {
                hot_.add(t, slot, t * n_used + u);
            } else {
                cold_.add(t, id, t * n_used + u);
            }
        }
    }
}

// Chains

// n_used is a part of the shape: a warm-up run uses every expert, the next one only a few.
uint64_t hot_context::chain_key(const moe_layer & layer, int64_t n_tokens, int64_t n_used, int64_t n_pairs) const {
    const int owner = n_tokens == 1 ? layer.index : class_of_[layer.index];
    return uint64_t(owner) << 32 | uint64_t(n_tokens) << 24 | uint64_t(n_used) << 16 | uint64_t(n_pairs);
}

// Builds the chains for every number of pairs that a small batch of this layer can have, at its first
// appearance: nothing is allocated when a token happens to need another number of them.
bool hot_context::prepare_host(moe_layer & layer, int64_t n_tokens, int64_t n_used) {
    const int64_t n_pairs = n_tokens * n_used;
    chain         largest = build_chain(transient(), layer.host, DECODE_TOKENS, SMALL_PAIRS, SMALL_PAIRS);
    const size_t  nbytes  = host_scratch_nbytes(largest);
    if (nbytes > host_scratch_.nbytes) {
        host_chains_.clear();
        if (!host_scratch_.ensure(nbytes, nullptr)) {
            return false;
        }
    }
    for (int64_t n = 1; n <= n_pairs; n++) {
        const uint64_t key = chain_key(layer, n_tokens, n_used, n);
        place_on_host(host_chains_.build(key, layer.host, n_tokens, n, n_tokens == 1 ? 0 : n_pairs), host_scratch_.data);
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
    chain          many   = build_chain(ctx, layer.slab.weights, DECODE_TOKENS, SMALL_PAIRS, 0);
    chain          single = build_chain(ctx, layer.slab.weights, 1, SMALL_PAIRS, 0);
    const size_t   nbytes = std::max(device_scratch_nbytes(many, device_buft_), device_scratch_nbytes(single, device_buft_));
    if (device_scratch_ == nullptr || nbytes > ggml.ggml_backend_buffer_get_size(device_scratch_)) {
        device_chains_.clear();
        if (!grow_device(device_scratch_, nbytes)) {
            return false;
        }
    }
    for (int64_t n = 1; n <= n_tokens * n_used; n++) {
        chain & built = device_chains_.build(chain_key(layer, n_tokens, n_used, n), layer.slab.weights, n_tokens, n, 0);
        if (device_scratch_nbytes(built, device_buft_) > ggml.ggml_backend_buffer_get_size(device_scratch_) ||
            !place_on_device(built, device_scratch_)) {
            device_chains_.clear();
            return false;
        }
    }
    return true;
}

// A chain for the cold pairs in place, or one without a graph if there is no memory for it.
chain hot_context::host_chain(moe_layer & layer, int64_t n_tokens, int64_t n_used) {
    const int64_t n_pairs = n_tokens * n_used;
    if (!is_small(n_tokens, n_pairs)) {
        chain built = build_chain(transient_, layer.host, n_tokens, cold_.n, n_pairs);
        if (!host_bulk_.ensure(host_scratch_nbytes(built), nullptr)) {
            return chain();
        }
        place_on_host(built, host_bulk_.data);
        return built;
    }
    chain * found = host_chains_.find(chain_key(layer, n_tokens, n_used, cold_.n));
    set_weights(*found, layer.host);
    return *found;
}

}  // namespace hot
