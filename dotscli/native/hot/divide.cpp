// One layer of one batch: the pairs divided, both sides begun, their rows put in place.
#include "hot/context.h"

#include <cstring>

namespace hot {

// Rows of x may be further apart than they are long.
static void point_at_rows(ggml_tensor * leaf, const char * data, size_t stride) {
    leaf->data  = const_cast<char *>(data);
    leaf->nb[1] = stride;
    leaf->nb[2] = stride * leaf->ne[1];
    leaf->nb[3] = leaf->nb[2] * leaf->ne[2];
}

int hot_context::run_cold(chain & c, const layer_run & run) {
    char * dst = static_cast<char *>(run.dst->data);
    point_at_rows(c.x, run.x_data, run.x_stride);
    c.ids->data = cold_.experts.data();
    if (c.tokens != nullptr) {
        c.tokens->data = cold_.tokens.data();
    }
    if (c.dst != nullptr) {
        c.rows->data   = cold_.rows.data();
        c.dst->data    = dst;
        c.result->data = dst;
    }
    const int status = forward(c.graph);
    if (status == STATUS_SUCCESS && c.dst == nullptr) {
        for (int64_t i = 0; i < cold_.n; i++) {
            memcpy(dst + cold_.rows[i] * run.row, static_cast<const char *>(c.down->data) + i * run.row, run.row);
        }
    }
    return status;
}

int hot_context::scatter(const layer_run & run) {
    if (!run.bulk) {
        for (int64_t i = 0; i < hot_.n; i++) {
            memcpy(static_cast<char *>(run.dst->data) + hot_.rows[i] * run.row, run.staged_rows + i * run.row, run.row);
        }
        return STATUS_SUCCESS;
    }
    // Many megabytes: ggml's threads share the copying.
    ggml_context * ctx   = transient();
    ggml_tensor *  to    = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, run.dst->ne[0], run.n_pairs);
    ggml_tensor *  from  = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, run.dst->ne[0], hot_.n);
    ggml_tensor *  at    = ggml.ggml_new_tensor_1d(ctx, TYPE_I32, hot_.n);
    ggml_tensor *  set   = ggml.ggml_set_rows(ctx, to, from, at);
    ggml_cgraph *  graph = ggml.ggml_new_graph_custom(ctx, 8, false);
    ggml.ggml_build_forward_expand(graph, set);
    to->data   = run.dst->data;
    set->data  = run.dst->data;
    from->data = run.staged_rows;
    at->data   = hot_.rows.data();
    return forward(graph);
}

int hot_context::on_the_cpu(const layer_run & run) {
    const int status = forward(run.graph);
    (run.n_tokens <= DECODE_TOKENS ? run.model->counters.decode_misses : run.model->counters.prefill_misses) += run.n_pairs;
    run.model->counters.cpu_ns += now_ns() - run.start;
    return status;
}

static bool overlap(const void * a, size_t a_nbytes, const void * b, size_t b_nbytes) {
    const char * a0 = static_cast<const char *>(a);
    const char * b0 = static_cast<const char *>(b);
    return a0 < b0 + b_nbytes && b0 < a0 + a_nbytes;
}

// Memory to meet in. x is read until both sides are done, but llama.cpp may have given its memory to
// down's result.
bool hot_context::stage(layer_run & run) {
    const size_t x_nbytes   = padded((run.bulk ? run.n_tokens : DECODE_TOKENS) * run.row);
    const size_t ids_nbytes = padded((run.bulk ? run.n_pairs : SMALL_PAIRS) * sizeof(int32_t));
    if (!staging_.ensure(x_nbytes + 2 * ids_nbytes + (run.bulk ? run.n_pairs : SMALL_PAIRS) * run.row, pinned_buft_)) {
        return false;
    }
    char * staged_x   = staging_.data;
    run.staged_tokens = staged_x + x_nbytes;
    run.staged_ids    = run.staged_tokens + ids_nbytes;
    run.staged_rows   = run.staged_ids + ids_nbytes;

    run.x_data   = static_cast<const char *>(run.x->data);
    run.x_stride = run.x->nb[2];
    if (staging_.pinned != nullptr || run.x_stride != run.row ||
        overlap(run.x_data, run.n_tokens * run.x_stride, run.dst->data, run.n_pairs * run.row)) {
        for (int64_t t = 0; t < run.n_tokens; t++) {
            memcpy(staged_x + t * run.row, run.x_data + t * run.x_stride, run.row);
        }
        run.x_data   = staged_x;
        run.x_stride = run.row;
    }
    memcpy(run.staged_ids, hot_.experts.data(), hot_.n * sizeof(int32_t));
    memcpy(run.staged_tokens, hot_.tokens.data(), hot_.n * sizeof(int32_t));
    return true;
}

// Hands the device its pairs from `first` on; x goes with the first ones and stays there.
bool hot_context::begin_on_device(chain & c, const layer_run & run, int64_t first, int64_t n) {
    if (first == 0) {
        ggml.ggml_backend_tensor_set_async(device_, c.x, run.x_data, 0, run.n_tokens * run.row);
    }
    ggml.ggml_backend_tensor_set_async(device_, c.ids, run.staged_ids + first * sizeof(int32_t), 0, n * sizeof(int32_t));
    if (c.tokens != nullptr) {
        ggml.ggml_backend_tensor_set_async(device_, c.tokens, run.staged_tokens + first * sizeof(int32_t), 0, n * sizeof(int32_t));
    }
    return ggml.ggml_backend_graph_compute_async(device_, c.graph) == STATUS_SUCCESS;
}

int hot_context::run(const std::shared_ptr<hot_model> & model, const layer_nodes & nodes, ggml_cgraph * graph) {
    moe_layer & layer = *nodes.layer;
    layer_run   run{ model, layer, graph, nodes.up->src[2], nodes.up->src[1], nodes.down };
    run.n_used   = run.ids->ne[0];
    run.n_tokens = run.ids->ne[1];
    run.n_pairs  = run.n_used * run.n_tokens;
    run.bulk     = !is_small(run.n_tokens, run.n_pairs);
    run.row      = layer.n_embd * sizeof(float);
    run.start    = now_ns();

    const bool may_stream = run.bulk && model->device != nullptr && model->streaming != STREAM_NEVER;
    if (layer.off || model->trial == TRIAL_ON_CPU || (layer.n_resident == 0 && !may_stream)) {
        return on_the_cpu(run);
    }
    std::shared_lock<std::shared_mutex> lock(layer.residency);
    split_pairs(layer, run.ids);
    streamed_.clear();
    cold_loads_.clear();
    if (may_stream) {
        choose_streamed(run);
    }
    if (hot_.n == 0 && streamed_.empty()) {
        lock.unlock();
        const int status = on_the_cpu(run);
        model->costs.computed_on_cpu(cold_loads_.size(), run.n_pairs, layer.expert_nbytes(), (now_ns() - run.start) / 1e9);
        return status;
    }
    if (!bind(model)) {
        model->switch_off(layer, "the hot device can't be started");
        return on_the_cpu(run);
    }
    return streamed_.empty() ? run_divided(run) : run_streamed(run);
}

// The residents' pairs on the device, the others on the CPU.
int hot_context::run_divided(layer_run & run) {
    moe_layer &    layer = run.layer;
    hot_model &    model = *run.model;
    const uint64_t first = chain_key(layer, run.n_tokens, run.n_used, 1);

    // 1. Graphs for both sides, and memory to meet in.
    if (!run.bulk && device_chains_.find(first) == nullptr && !prepare_device(layer, run.n_tokens, run.n_used)) {
        model.switch_off(layer, "no device memory left to compute in");
        return on_the_cpu(run);
    }
    if (!run.bulk && host_chains_.find(first) == nullptr && !prepare_host(layer, run.n_tokens, run.n_used)) {
        return on_the_cpu(run);
    }
    if (run.bulk && (transient() == nullptr || !reserve_bulk(run, hot_.n))) {
        return on_the_cpu(run);
    }
    chain hot;
    if (run.bulk) {
        hot = job_chain(run, layer.slab.weights, hot_.n, 0);
    } else {
        hot = *device_chains_.find(chain_key(layer, run.n_tokens, run.n_used, hot_.n));
        set_weights(hot, layer.slab.weights);
    }
    chain cold;
    if (cold_.n > 0) {
        cold = host_chain(layer, run.n_tokens, run.n_used);
    }
    if (hot.graph == nullptr || (cold_.n > 0 && cold.graph == nullptr) || !stage(run)) {
        return on_the_cpu(run);
    }

    // 2. The device starts; where it computes asynchronously, the CPU goes on at once.
    if (!begin_on_device(hot, run, 0, hot_.n)) {
        ggml.ggml_backend_synchronize(device_);
        model.switch_off(layer, "the hot device failed to compute");
        return on_the_cpu(run);
    }
    // Into memory that isn't pinned a download may block: then it waits until the CPU is done.
    char *     target = cold_.n == 0 ? static_cast<char *>(run.dst->data) : run.staged_rows;
    const bool early  = cold_.n == 0 || staging_.pinned != nullptr;
    if (early) {
        ggml.ggml_backend_tensor_get_async(device_, hot.down, target, 0, hot_.n * run.row);
    }
    const uint64_t issued = now_ns();

    // 3. The CPU computes what isn't resident.
    int status = STATUS_SUCCESS;
    if (cold_.n > 0) {
        status = run_cold(cold, run);
    }
    const uint64_t computed = now_ns();

    // 4. The device's rows go where they belong.
    if (!early) {
        ggml.ggml_backend_tensor_get_async(device_, hot.down, target, 0, hot_.n * run.row);
    }
    ggml.ggml_backend_synchronize(device_);
    const uint64_t collected = now_ns();
    if (status == STATUS_SUCCESS && cold_.n > 0) {
        status = scatter(run);
    }
    count(run, hot_.n, issued, computed, collected);
    return status;
}

void hot_context::count(const layer_run & run, int64_t n_hits, uint64_t issued, uint64_t computed, uint64_t collected) {
    hot_counters & counters = run.model->counters;
    const bool     decoding = run.n_tokens <= DECODE_TOKENS;
    (decoding ? counters.decode_hits : counters.prefill_hits) += n_hits;
    (decoding ? counters.decode_misses : counters.prefill_misses) += run.n_pairs - n_hits;
    counters.cpu_ns += computed - issued;
    counters.device_ns += (issued - run.start) + (now_ns() - computed);
    counters.wait_ns += collected - computed;
    if (!cold_loads_.empty()) {
        run.model->costs.computed_on_cpu(cold_loads_.size(), cold_.n, run.layer.expert_nbytes(), (computed - issued) / 1e9);
    }
}

}  // namespace hot
