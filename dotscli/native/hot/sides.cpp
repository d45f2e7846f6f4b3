// What each side does in a layer: the activations staged, the device begun, the CPU's pairs, the rows.
#include "hot/clock.h"
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

// The chain is about the CPU's pairs from `first` on.
void hot_context::point_cold(chain & c, const layer_run & run, int64_t first) {
    point_at_rows(c.x, run.x_data, run.x_stride);
    c.ids->data = cold_.experts.data() + first;
    if (c.tokens != nullptr) {
        c.tokens->data = cold_.tokens.data() + first;
    }
    if (c.dst != nullptr) {
        c.rows->data   = cold_.rows.data() + first;
        c.dst->data    = run.dst->data;
        c.result->data = run.dst->data;
    }
}

// Rows that the chain hasn't put in their place by itself.
void hot_context::keep_cold(const chain & c, const layer_run & run, int64_t first, int64_t n) {
    char * dst = static_cast<char *>(run.dst->data);
    for (int64_t i = 0; i < n && c.dst == nullptr; i++) {
        memcpy(dst + cold_.rows[first + i] * run.row, static_cast<const char *>(c.down->data) + i * run.row, run.row);
    }
}

int hot_context::run_cold(chain & c, const layer_run & run) {
    point_cold(c, run, 0);
    const int status = forward(c.graph);
    if (status == STATUS_SUCCESS) {
        keep_cold(c, run, 0, cold_.n);
    }
    return status;
}

int hot_context::scatter(const layer_run & run) {
    // Where it is many megabytes, ggml's threads share the copying.
    ggml_context * ctx = run.bulk ? transient() : nullptr;
    if (ctx == nullptr) {
        for (int64_t i = 0; i < hot_.n; i++) {
            memcpy(static_cast<char *>(run.dst->data) + hot_.rows[i] * run.row, run.staged_rows + i * run.row, run.row);
        }
        return STATUS_SUCCESS;
    }
    ggml_tensor * to    = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, run.dst->ne[0], run.n_pairs);
    ggml_tensor * from  = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, run.dst->ne[0], hot_.n);
    ggml_tensor * at    = ggml.ggml_new_tensor_1d(ctx, TYPE_I32, hot_.n);
    ggml_tensor * set   = ggml.ggml_set_rows(ctx, to, from, at);
    ggml_cgraph * graph = ggml.ggml_new_graph_custom(ctx, 8, false);
    ggml.ggml_build_forward_expand(graph, set);
    to->data   = run.dst->data;
    set->data  = run.dst->data;
    from->data = run.staged_rows;
    at->data   = hot_.rows.data();
    return forward(graph);
}

int hot_context::on_the_cpu(layer_run & run) {
    if (run.layer.tiered) {
        return on_the_cpu_tiered(run);
    }
    const int status = forward(run.graph);
    (run.n_tokens <= DECODE_TOKENS ? run.model->counters.decode_misses : run.model->counters.prefill_misses) += run.n_pairs;
    run.model->counters.cpu_ns += now_ns() - run.start;
    return status;
}

int hot_context::without_memory(layer_run & run) {
    if (run.bulk) {
        run.model->say_once("prompts of this length run on the CPU: no memory left to compute them in");
    } else {
        run.model->switch_off(run.layer, "no memory left to compute in");
    }
    return on_the_cpu(run);
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

}  // namespace hot
