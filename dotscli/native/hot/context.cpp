#include "hot/context.h"

namespace hot {

static constexpr int FEWEST_TO_SPARE = 4;  // threads: of fewer, one is too large a part

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
    device_bulk_refused_ = SIZE_MAX;
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
    set_cpu_threads(n_threads);
    if (device_ != nullptr) {
        set_backend_n_threads(device_, n_threads);
    }
}

// Who waits for the disk asks by itself.
void hot_context::set_abort_callback(ggml_abort_callback callback, void * data) {
    abort_      = callback;
    abort_data_ = data;
    typedef void (*set_abort_callback_t)(ggml_backend * backend, ggml_abort_callback callback, void * data);
    auto set = reinterpret_cast<set_abort_callback_t>(cpu_function(cpu_, "ggml_backend_set_abort_callback"));
    if (set != nullptr) {
        set(cpu_, callback, data);
    }
}

void hot_context::set_cpu_threads(int n_threads) {
    if (n_threads != cpu_threads_) {
        cpu_threads_ = n_threads;
        set_backend_n_threads(cpu_, n_threads);
    }
}

// Every barrier of ggml's waits for the thread that has no core. Where the dense layers are computed by
// llama.cpp's own CPU backend, x is no copy: then OpenMP would end and start a thread at every turn.
void hot_context::share_cores(const layer_run & run) {
    const bool spare = n_threads_ >= FEWEST_TO_SPARE && run.x->op == OP_NONE && run.model->uploading.go_on();
    set_cpu_threads(n_threads_ - spare);
    run.model->counters.spared_layers += spare;
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

// By the layers' indices, which ascend: the first layer with the same types and shapes.
static std::vector<int> classes_of(const std::vector<moe_layer *> & layers) {
    std::vector<int> class_of(layers.empty() ? 0 : layers.back()->index + 1, -1);
    for (const moe_layer * layer : layers) {
        for (const moe_layer * earlier : layers) {
            if (same_shape(*earlier, *layer)) {
                class_of[layer->index] = earlier->index;
                break;
            }
        }
    }
    return class_of;
}

// Chains on the host are those of one model's shapes.
void hot_context::know_shapes(const hot_model & model) {
    if (shapes_of_ != &model) {
        shapes_of_ = nullptr;
        host_chains_.clear();
        class_of_  = classes_of(model.layers());
        shapes_of_ = &model;
    }
}

bool hot_context::bind(const std::shared_ptr<hot_model> & model) {
    if (model_ == model) {
        return device_ != nullptr;
    }
    unbind();
    know_shapes(*model);
    device_ = ggml.ggml_backend_dev_init(model->device, nullptr);
    if (device_ != nullptr) {
        set_backend_n_threads(device_, n_threads_);
        set_backend_threadpool(device_, threadpool_);
        device_buft_ = ggml.ggml_backend_dev_buffer_type(model->device);
        pinned_buft_ = ggml.ggml_backend_dev_host_buffer_type(model->device);
        stream_      = std::make_unique<expert_stream>(model->device);
    }
    model_ = model;  // last: what memory ran out for is begun anew
    return device_ != nullptr;
}

}  // namespace hot
