#include "hot_context.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

namespace hot {

// Up to here a batch takes cached chains and memory that was set aside at the start: 8 tokens of a
// model that uses 8 experts. Larger ones build their graphs anew, which their size makes cheap.
static constexpr int64_t SMALL_PAIRS = 64;

static constexpr size_t ALIGNMENT = 64;

static bool is_small(int64_t n_tokens, int64_t n_pairs) {
    return n_tokens <= DECODE_TOKENS && n_pairs <= SMALL_PAIRS;
}

static size_t padded(size_t nbytes) {
    return (nbytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static uint64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// host_block

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
    data   = static_cast<char *>(pinned != nullptr ? ggml.ggml_backend_buffer_get_base(pinned) : aligned_alloc(ALIGNMENT, wanted));
    nbytes = data != nullptr ? wanted : 0;
    return data != nullptr;
}

// chain_cache

chain_cache::~chain_cache() {
    clear();
}

void chain_cache::clear() {
    chains.clear();
    for (ggml_context * ctx : contexts) {
        ggml.ggml_free(ctx);
    }
    contexts.clear();
}

// pair_list

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

// hot_context

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
    if (transient_ != nullptr) {
        ggml.ggml_free(transient_);
    }
    ggml.ggml_backend_free(cpu_);
}

void hot_context::unbind() {
    device_chains_.clear();
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

static chain * cached(chain_cache & cache, uint64_t key) {
    const auto found = cache.chains.find(key);
    return found != cache.chains.end() ? &found->second : nullptr;
}

static chain & remember(chain_cache & cache, uint64_t key, ggml_tensor * const weights[N_PARTS], int64_t n_tokens, int64_t n_pairs,
                        int64_t n_dst_rows) {
    cache.contexts.push_back(ggml.ggml_init({ chain_meta_nbytes(), nullptr, true }));
    chain & built = cache.chains[key];
    built         = build_chain(cache.contexts.back(), weights, n_tokens, n_pairs, n_dst_rows);
    return built;
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
        place_on_host(remember(host_chains_, key, layer.host, n_tokens, n, n_tokens == 1 ? 0 : n_pairs), host_scratch_.data);
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
    chain          many   = build_chain(ctx, layer.slab, DECODE_TOKENS, SMALL_PAIRS, 0);
    chain          single = build_chain(ctx, layer.slab, 1, SMALL_PAIRS, 0);
    const size_t   nbytes = std::max(device_scratch_nbytes(many, device_buft_), device_scratch_nbytes(single, device_buft_));
    if (device_scratch_ == nullptr || nbytes > ggml.ggml_backend_buffer_get_size(device_scratch_)) {
        device_chains_.clear();
        if (!grow_device(device_scratch_, nbytes)) {
            return false;
        }
    }
    for (int64_t n = 1; n <= n_tokens * n_used; n++) {
        chain & built = remember(device_chains_, chain_key(layer, n_tokens, n_used, n), layer.slab, n_tokens, n, 0);
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
    chain * found = cached(host_chains_, chain_key(layer, n_tokens, n_used, cold_.n));
    set_weights(*found, layer.host);
    return *found;
}

chain hot_context::device_chain(moe_layer & layer, int64_t n_tokens, int64_t n_used) {
    if (!is_small(n_tokens, n_tokens * n_used)) {
        chain        built  = build_chain(transient_, layer.slab, n_tokens, hot_.n, 0);
        const size_t nbytes = device_scratch_nbytes(built, device_buft_);
        if (nbytes >= device_bulk_refused_ || !grow_device(device_bulk_, nbytes)) {
            device_bulk_refused_ = std::min(device_bulk_refused_, nbytes);
            return chain();
        }
        return place_on_device(built, device_bulk_) ? built : chain();
    }
    chain * found = cached(device_chains_, chain_key(layer, n_tokens, n_used, hot_.n));
    set_weights(*found, layer.slab);
    return *found;
}

// Runs

// Rows of x may be further apart than they are long.
static void point_at_rows(ggml_tensor * leaf, const char * data, size_t stride) {
    leaf->data  = const_cast<char *>(data);
    leaf->nb[1] = stride;
    leaf->nb[2] = stride * leaf->ne[1];
    leaf->nb[3] = leaf->nb[2] * leaf->ne[2];
}

int hot_context::run_cold(chain & c, ggml_tensor * dst, const char * x, size_t x_stride) {
    const size_t row_nbytes = dst->nb[1];
    point_at_rows(c.x, x, x_stride);
    c.ids->data = cold_.experts.data();
    if (c.tokens != nullptr) {
        c.tokens->data = cold_.tokens.data();
    }
    if (c.dst != nullptr) {
        c.rows->data   = cold_.rows.data();
        c.dst->data    = dst->data;
        c.result->data = dst->data;
    }
    const int status = forward(c.graph);
    if (status == STATUS_SUCCESS && c.dst == nullptr) {
        for (int64_t i = 0; i < cold_.n; i++) {
            memcpy(static_cast<char *>(dst->data) + cold_.rows[i] * row_nbytes, static_cast<const char *>(c.down->data) + i * row_nbytes,
                   row_nbytes);
        }
    }
    return status;
}

int hot_context::scatter(ggml_tensor * dst, const char * rows, bool bulk) {
    const size_t row_nbytes = dst->nb[1];
    if (!bulk) {
        for (int64_t i = 0; i < hot_.n; i++) {
            memcpy(static_cast<char *>(dst->data) + hot_.rows[i] * row_nbytes, rows + i * row_nbytes, row_nbytes);
        }
        return STATUS_SUCCESS;
    }
    // Many megabytes: ggml's threads share the copying.
    ggml_context * ctx  = transient();
    ggml_tensor *  to   = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, dst->ne[0], dst->ne[1] * dst->ne[2]);
    ggml_tensor *  from = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, dst->ne[0], hot_.n);
    ggml_tensor *  at   = ggml.ggml_new_tensor_1d(ctx, TYPE_I32, hot_.n);
    ggml_tensor *  set  = ggml.ggml_set_rows(ctx, to, from, at);
    ggml_cgraph *  graph = ggml.ggml_new_graph_custom(ctx, 8, false);
    ggml.ggml_build_forward_expand(graph, set);
    to->data   = dst->data;
    set->data  = dst->data;
    from->data = const_cast<char *>(rows);
    at->data   = hot_.rows.data();
    return forward(graph);
}

static bool overlap(const void * a, size_t a_nbytes, const void * b, size_t b_nbytes) {
    const char * a0 = static_cast<const char *>(a);
    const char * b0 = static_cast<const char *>(b);
    return a0 < b0 + b_nbytes && b0 < a0 + a_nbytes;
}

int hot_context::run(const std::shared_ptr<hot_model> & model, const layer_nodes & nodes, ggml_cgraph * graph) {
    moe_layer &         layer    = *nodes.layer;
    hot_counters &      counters = model->counters;
    const ggml_tensor * ids      = nodes.up->src[2];
    const ggml_tensor * x        = nodes.up->src[1];
    ggml_tensor *       dst      = nodes.down;
    const int64_t       n_used   = ids->ne[0];
    const int64_t       n_tokens = ids->ne[1];
    const int64_t       n_pairs  = n_used * n_tokens;
    const bool          bulk     = !is_small(n_tokens, n_pairs);
    const size_t        row      = layer.n_embd * sizeof(float);
    const uint64_t      start    = now_ns();

    auto & hits   = n_tokens <= DECODE_TOKENS ? counters.decode_hits : counters.prefill_hits;
    auto & misses = n_tokens <= DECODE_TOKENS ? counters.decode_misses : counters.prefill_misses;

    auto all_on_the_cpu = [&]() {
        const int status = forward(graph);
        misses += n_pairs;
        counters.cpu_ns += now_ns() - start;
        return status;
    };

    if (layer.n_resident == 0 || layer.off || model->trial == TRIAL_ON_CPU) {
        return all_on_the_cpu();
    }
    std::shared_lock<std::shared_mutex> lock(layer.residency);
    split_pairs(layer, ids);
    if (hot_.n == 0) {
        lock.unlock();
        return all_on_the_cpu();
    }
    if (!bind(model)) {
        model->switch_off(layer, "the hot device can't be started");
        return all_on_the_cpu();
    }

    // 1. Graphs for both sides, and memory to meet in.
    const uint64_t first = chain_key(layer, n_tokens, n_used, 1);
    if (!bulk && cached(device_chains_, first) == nullptr && !prepare_device(layer, n_tokens, n_used)) {
        model->switch_off(layer, "no device memory left to compute in");
        return all_on_the_cpu();
    }
    if (!bulk && cached(host_chains_, first) == nullptr && !prepare_host(layer, n_tokens, n_used)) {
        return all_on_the_cpu();
    }
    if (bulk && transient() == nullptr) {
        return all_on_the_cpu();
    }
    chain hot = device_chain(layer, n_tokens, n_used);
    chain cold;
    if (hot.graph == nullptr) {
        model->say_once("prompts of this length run on the CPU: no device memory left to compute them in");
        return all_on_the_cpu();
    }
    if (cold_.n > 0) {
        cold = host_chain(layer, n_tokens, n_used);
    }
    const size_t x_nbytes   = padded((bulk ? n_tokens : DECODE_TOKENS) * row);
    const size_t ids_nbytes = padded((bulk ? n_pairs : SMALL_PAIRS) * sizeof(int32_t));
    if ((cold_.n > 0 && cold.graph == nullptr) || !staging_.ensure(x_nbytes + 2 * ids_nbytes + (bulk ? n_pairs : SMALL_PAIRS) * row, pinned_buft_)) {
        return all_on_the_cpu();
    }
    char * staged_x      = staging_.data;
    char * staged_tokens = staged_x + x_nbytes;
    char * staged_ids    = staged_tokens + ids_nbytes;
    char * staged_rows   = staged_ids + ids_nbytes;

    // 2. x is read until both sides are done, but llama.cpp may have given its memory to down's result.
    const char * x_data   = static_cast<const char *>(x->data);
    size_t       x_stride = x->nb[2];
    if (staging_.pinned != nullptr || x_stride != row || overlap(x->data, n_tokens * x_stride, dst->data, n_pairs * row)) {
        for (int64_t t = 0; t < n_tokens; t++) {
            memcpy(staged_x + t * row, x_data + t * x_stride, row);
        }
        x_data   = staged_x;
        x_stride = row;
    }
    memcpy(staged_ids, hot_.experts.data(), hot_.n * sizeof(int32_t));
    memcpy(staged_tokens, hot_.tokens.data(), hot_.n * sizeof(int32_t));

    // 3. The device starts; where it computes asynchronously, the CPU goes on at once.
    ggml.ggml_backend_tensor_set_async(device_, hot.x, x_data, 0, n_tokens * row);
    ggml.ggml_backend_tensor_set_async(device_, hot.ids, staged_ids, 0, hot_.n * sizeof(int32_t));
    if (hot.tokens != nullptr) {
        ggml.ggml_backend_tensor_set_async(device_, hot.tokens, staged_tokens, 0, hot_.n * sizeof(int32_t));
    }
    if (ggml.ggml_backend_graph_compute_async(device_, hot.graph) != STATUS_SUCCESS) {
        ggml.ggml_backend_synchronize(device_);
        model->switch_off(layer, "the hot device failed to compute");
        return all_on_the_cpu();
    }
    // Into memory that isn't pinned a download may block: then it waits until the CPU is done.
    char *     target = cold_.n == 0 ? static_cast<char *>(dst->data) : staged_rows;
    const bool early  = cold_.n == 0 || staging_.pinned != nullptr;
    if (early) {
        ggml.ggml_backend_tensor_get_async(device_, hot.down, target, 0, hot_.n * row);
    }
    const uint64_t issued = now_ns();

    // 4. The CPU computes what isn't resident.
    int status = STATUS_SUCCESS;
    if (cold_.n > 0) {
        status = run_cold(cold, dst, x_data, x_stride);
    }
    const uint64_t computed = now_ns();

    // 5. The device's rows go where they belong.
    if (!early) {
        ggml.ggml_backend_tensor_get_async(device_, hot.down, target, 0, hot_.n * row);
    }
    ggml.ggml_backend_synchronize(device_);
    const uint64_t collected = now_ns();
    if (status == STATUS_SUCCESS && cold_.n > 0) {
        status = scatter(dst, staged_rows, bulk);
    }
    hits += hot_.n;
    misses += cold_.n;
    counters.cpu_ns += computed - issued;
    counters.device_ns += (issued - start) + (now_ns() - computed);
    counters.wait_ns += collected - computed;
    return status;
}

}  // namespace hot
