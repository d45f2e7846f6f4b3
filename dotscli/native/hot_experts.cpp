// The hot-expert backend: an ACCEL device under llama.cpp whose buffer type is host memory.
//
// llama.cpp gives every context a backend of this device, and its scheduler hands over each MoE layer
// as one split: MUL_MAT_ID up, MUL_MAT_ID gate, GLU, MUL_MAT_ID down. What happens to it then stands in
// hot_context.cpp. This file holds what ggml asks of a backend, in the order in which ggml's own
// backends have it: buffer, backend, device, registry; then the C interface.
#include "dots_hot.h"
#include "hot_context.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

using namespace hot;

// Experts are found again by the tensors that llama.cpp made for them.
struct expert_weight {
    moe_layer * layer;
    expert_part part;
};

struct hot_buffer {
    std::shared_ptr<hot_model>                             model;  // null: memory for computing
    std::unordered_map<const ggml_tensor *, expert_weight> weights;
    char *                                                 base   = nullptr;
    bool                                                   owned  = false;
    ggml_backend_buffer *                                  pinned = nullptr;
};

// Never destroyed: at the end of the process ggml may be gone before this library is.
struct process_state {
    std::mutex                                    mutex;
    std::map<int32_t, std::shared_ptr<hot_model>> models;
    int32_t                                       last   = 0;
    std::shared_ptr<hot_model>                    opened;  // whose weights are being loaded
    std::string                                   start_problem;
    bool                                          started    = false;
    ggml_threadpool *                             threadpool = nullptr;
};

static process_state & state() {
    static process_state * the_state = new process_state();
    return *the_state;
}

static constexpr size_t ALIGNMENT = 64;

// More than this is not asked for as pinned memory, which the whole machine shares.
static constexpr size_t MAX_PINNED_NBYTES = size_t(1) << 30;

// buffer

static hot_buffer * context_of(const ggml_backend_buffer * buffer) {
    return static_cast<hot_buffer *>(buffer->context);
}

static void hot_buffer_free(ggml_backend_buffer * buffer) {
    hot_buffer * context = context_of(buffer);
    if (context->pinned != nullptr) {
        ggml.ggml_backend_buffer_free(context->pinned);
    } else if (context->owned) {
        free(context->base);
    }
    delete context;
}

static void * hot_buffer_get_base(ggml_backend_buffer * buffer) {
    return context_of(buffer)->base;
}

// blk.17.ffn_up_exps.weight -> layer 17, PART_UP
static bool parse_name(const char * name, int & layer, expert_part & part) {
    static const char * const parts[N_PARTS] = { "ffn_up_exps.weight", "ffn_gate_exps.weight", "ffn_down_exps.weight" };
    if (strncmp(name, "blk.", 4) != 0) {
        return false;
    }
    char *     end    = nullptr;
    const long number = strtol(name + 4, &end, 10);
    if (end == name + 4 || *end != '.' || number < 0 || number > INT32_MAX) {
        return false;
    }
    for (int i = 0; i < N_PARTS; i++) {
        if (strcmp(end + 1, parts[i]) == 0) {
            layer = int(number);
            part  = expert_part(i);
            return true;
        }
    }
    return false;
}

static int hot_buffer_init_tensor(ggml_backend_buffer * buffer, ggml_tensor * tensor) {
    hot_buffer * context = context_of(buffer);
    int          index   = -1;
    expert_part  part    = PART_UP;
    if (context->model != nullptr && tensor->op == OP_NONE && tensor->view_src == nullptr && parse_name(tensor->name, index, part)) {
        std::lock_guard<std::mutex> lock(state().mutex);
        moe_layer *                 layer = context->model->add_tensor(tensor, part, index);
        if (layer != nullptr) {
            context->weights[tensor] = { layer, part };
        }
    }
    return STATUS_SUCCESS;
}

static void hot_buffer_memset_tensor(ggml_backend_buffer *, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    memset(static_cast<char *>(tensor->data) + offset, value, size);
}

static void hot_buffer_set_tensor(ggml_backend_buffer *, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    memcpy(static_cast<char *>(tensor->data) + offset, data, size);
}

static void hot_buffer_get_tensor(ggml_backend_buffer *, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    memcpy(data, static_cast<const char *>(tensor->data) + offset, size);
}

static bool hot_buffer_cpy_tensor(ggml_backend_buffer *, const ggml_tensor * src, ggml_tensor * dst) {
    if (src->buffer == nullptr || !ggml.ggml_backend_buft_is_host(src->buffer->buft)) {
        return false;
    }
    memcpy(dst->data, src->data, ggml.ggml_nbytes(src));
    return true;
}

static void hot_buffer_clear(ggml_backend_buffer * buffer, uint8_t value) {
    memset(context_of(buffer)->base, value, buffer->size);
}

static const ggml_backend_buffer_i hot_buffer_i = {
    /* .free_buffer   = */ hot_buffer_free,
    /* .get_base      = */ hot_buffer_get_base,
    /* .init_tensor   = */ hot_buffer_init_tensor,
    /* .memset_tensor = */ hot_buffer_memset_tensor,
    /* .set_tensor    = */ hot_buffer_set_tensor,
    /* .get_tensor    = */ hot_buffer_get_tensor,
    /* .set_tensor_2d = */ nullptr,
    /* .get_tensor_2d = */ nullptr,
    /* .cpy_tensor    = */ hot_buffer_cpy_tensor,
    /* .clear         = */ hot_buffer_clear,
    /* .reset         = */ nullptr,
};

// buffer type

static const char * hot_buft_get_name(ggml_backend_buffer_type *) {
    return "Hot";
}

// Memory that llama.cpp's scheduler computes in: pinned if the hot device has such, for results come
// from there. Weights that are read instead of mapped go into plain memory.
static ggml_backend_buffer * hot_buft_alloc_buffer(ggml_backend_buffer_type * buft, size_t size) {
    process_state & s       = state();
    hot_buffer *    context = new hot_buffer();
    {
        std::lock_guard<std::mutex> lock(s.mutex);
        context->model = s.opened;
        const auto last = s.models.find(s.last);
        if (context->model == nullptr && last != s.models.end() && last->second->device != nullptr && size <= MAX_PINNED_NBYTES) {
            ggml_backend_buffer_type * pinned = ggml.ggml_backend_dev_host_buffer_type(last->second->device);
            if (pinned != nullptr) {
                context->pinned = ggml.ggml_backend_buft_alloc_buffer(pinned, size);
            }
        }
    }
    if (context->pinned != nullptr) {
        context->base = static_cast<char *>(ggml.ggml_backend_buffer_get_base(context->pinned));
    } else {
        context->base  = static_cast<char *>(aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT));
        context->owned = true;
    }
    if (context->base == nullptr) {
        delete context;
        return nullptr;
    }
    return ggml.ggml_backend_buffer_init(buft, hot_buffer_i, context, size);
}

static size_t hot_buft_get_alignment(ggml_backend_buffer_type *) {
    return ALIGNMENT;
}

static bool hot_buft_is_host(ggml_backend_buffer_type *) {
    return true;
}

extern ggml_backend_device hot_device;

static ggml_backend_buffer_type hot_buft = {
    /* .iface   = */ {
        /* .get_name       = */ hot_buft_get_name,
        /* .alloc_buffer   = */ hot_buft_alloc_buffer,
        /* .get_alignment  = */ hot_buft_get_alignment,
        /* .get_max_size   = */ nullptr,
        /* .get_alloc_size = */ nullptr,
        /* .is_host        = */ hot_buft_is_host,
    },
    /* .device  = */ &hot_device,
    /* .context = */ nullptr,
};

// The buffer whose weights an operation multiplies with, or null if they aren't ours. llama.cpp probes
// buffer types with empty buffers when it looks for a home for a weight: those have no context.
static hot_buffer * buffer_of(const ggml_tensor * weight) {
    if (weight == nullptr || weight->buffer == nullptr || weight->buffer->buft != &hot_buft || weight->buffer->context == nullptr) {
        return nullptr;
    }
    hot_buffer * context = context_of(weight->buffer);
    return context->model != nullptr ? context : nullptr;
}

// An expert weight by its tensor; {nullptr, ...} if it is none.
static expert_weight weight_of(const ggml_tensor * tensor) {
    const hot_buffer * context = buffer_of(tensor);
    if (context != nullptr) {
        const auto found = context->weights.find(tensor);
        if (found != context->weights.end() && found->second.layer->ready) {
            return found->second;
        }
    }
    return { nullptr, PART_UP };
}

// backend

static hot_context * context_of(ggml_backend * backend) {
    return static_cast<hot_context *>(backend->context);
}

static const char * hot_backend_get_name(ggml_backend *) {
    return "Hot";
}

static void hot_backend_free(ggml_backend * backend) {
    delete context_of(backend);
    delete backend;
}

static bool is_view_op(const ggml_tensor * node) {
    return node->view_src != nullptr && node->op != OP_SET_ROWS;
}

// Whether nodes[0..3] are a whole chain that may be computed as one. Anything unusual (an output that
// somebody asked for, activations per slot, ids that differ) is left to be computed node by node.
static bool match_layer(ggml_tensor * const nodes[4], layer_nodes & found) {
    ggml_tensor * down = nodes[3];
    ggml_tensor * glu  = nodes[2];
    for (int i : { 0, 1, 3 }) {
        if (nodes[i]->op != OP_MUL_MAT_ID) {
            return false;
        }
    }
    if (glu->op != OP_GLU || glu->op_params[0] != GLU_SWIGLU || glu->src[1] == nullptr) {
        return false;
    }
    ggml_tensor * gate = glu->src[0];
    ggml_tensor * up   = glu->src[1];
    if (!((nodes[0] == up && nodes[1] == gate) || (nodes[0] == gate && nodes[1] == up))) {
        return false;
    }
    const expert_weight up_weight   = weight_of(up->src[0]);
    const expert_weight gate_weight = weight_of(gate->src[0]);
    const expert_weight down_weight = weight_of(down->src[0]);
    moe_layer *         layer       = up_weight.layer;
    if (layer == nullptr || gate_weight.layer != layer || down_weight.layer != layer || up_weight.part != PART_UP ||
        gate_weight.part != PART_GATE || down_weight.part != PART_DOWN) {
        return false;
    }
    const ggml_tensor * x   = up->src[1];
    const ggml_tensor * ids = up->src[2];
    if (gate->src[1] != x || gate->src[2] != ids || down->src[1] != glu || down->src[2] != ids) {
        return false;
    }
    if (x->type != TYPE_F32 || x->ne[1] != 1 || x->ne[3] != 1 || x->nb[0] != sizeof(float) || ids->type != TYPE_I32 || ids->ne[2] != 1 ||
        ids->ne[1] != x->ne[2] || ids->ne[0] < 1 || ids->ne[1] < 1 || !ggml.ggml_is_contiguous(down)) {
        return false;
    }
    if ((up->flags | gate->flags | glu->flags) & FLAG_OUTPUT) {
        return false;
    }
    found = { layer, up, gate, glu, down };
    return true;
}

static void count_heat(const ggml_tensor * up) {
    const expert_weight weight = weight_of(up->src[0]);
    if (weight.layer != nullptr && weight.part == PART_UP) {
        buffer_of(up->src[0])->model->count(*weight.layer, up->src[2]);
    }
}

static int compute_nodes(hot_context & context, ggml_tensor * const * nodes, int n_nodes) {
    ggml_context * ctx   = ggml.ggml_init({ ggml.ggml_graph_overhead_custom(n_nodes, false), nullptr, true });
    if (ctx == nullptr) {
        return STATUS_FAILED;
    }
    ggml_cgraph * graph = ggml.ggml_new_graph_custom(ctx, n_nodes, false);
    for (int i = 0; i < n_nodes; i++) {
        ggml.ggml_graph_add_node(graph, nodes[i]);
    }
    const int status = context.forward(graph);
    ggml.ggml_free(ctx);
    return status;
}

static int hot_backend_graph_compute(ggml_backend * backend, ggml_cgraph * graph) {
    hot_context & context = *context_of(backend);
    const int     n_nodes = ggml.ggml_graph_n_nodes(graph);

    for (int i = 0; i < n_nodes; i++) {
        const ggml_tensor * node = ggml.ggml_graph_node(graph, i);
        if (node->op == OP_MUL_MAT_ID) {
            count_heat(node);
        }
    }
    // The usual case: one layer, nothing else.
    layer_nodes   found;
    ggml_tensor * four[4];
    if (n_nodes == 4) {
        for (int i = 0; i < 4; i++) {
            four[i] = ggml.ggml_graph_node(graph, i);
        }
        if (match_layer(four, found)) {
            return context.run(buffer_of(found.up->src[0])->model, found, graph);
        }
        return context.forward(graph);
    }
    // Pieces of a chain, when an eval callback looks at nodes in between, or a chain with views around.
    std::vector<ggml_tensor *> pending;
    for (int i = 0; i < n_nodes; i++) {
        ggml_tensor * node = ggml.ggml_graph_node(graph, i);
        bool          whole = i + 4 <= n_nodes;
        for (int k = 0; whole && k < 4; k++) {
            four[k] = ggml.ggml_graph_node(graph, i + k);
        }
        if (!whole || !match_layer(four, found)) {
            if (!is_view_op(node)) {
                pending.push_back(node);
            }
            continue;
        }
        if (!pending.empty()) {
            const int status = compute_nodes(context, pending.data(), int(pending.size()));
            if (status != STATUS_SUCCESS) {
                return status;
            }
            pending.clear();
        }
        ggml_context * ctx    = ggml.ggml_init({ ggml.ggml_graph_overhead_custom(4, false), nullptr, true });
        ggml_cgraph *  chain  = ggml.ggml_new_graph_custom(ctx, 4, false);
        for (ggml_tensor * part : four) {
            ggml.ggml_graph_add_node(chain, part);
        }
        const int status = context.run(buffer_of(found.up->src[0])->model, found, chain);
        ggml.ggml_free(ctx);
        if (status != STATUS_SUCCESS) {
            return status;
        }
        i += 3;
    }
    return pending.empty() ? STATUS_SUCCESS : compute_nodes(context, pending.data(), int(pending.size()));
}

static const ggml_backend_i hot_backend_i = {
    /* .get_name            = */ hot_backend_get_name,
    /* .free                = */ hot_backend_free,
    /* .set_tensor_async    = */ nullptr,
    /* .get_tensor_async    = */ nullptr,
    /* .set_tensor_2d_async = */ nullptr,
    /* .get_tensor_2d_async = */ nullptr,
    /* .cpy_tensor_async    = */ nullptr,
    /* .synchronize         = */ nullptr,
    /* .graph_plan_create   = */ nullptr,
    /* .graph_plan_free     = */ nullptr,
    /* .graph_plan_update   = */ nullptr,
    /* .graph_plan_compute  = */ nullptr,
    /* .graph_compute       = */ hot_backend_graph_compute,
    /* .event_record        = */ nullptr,
    /* .event_wait          = */ nullptr,
    /* .graph_optimize      = */ nullptr,
};

// Both are looked up by name and called by llama.cpp, with a backend of ours.
static void hot_backend_set_n_threads(ggml_backend * backend, int n_threads) {
    context_of(backend)->set_n_threads(n_threads);
}

static void hot_backend_set_abort_callback(ggml_backend * backend, ggml_abort_callback callback, void * data) {
    typedef void (*set_abort_callback_t)(ggml_backend * backend, ggml_abort_callback callback, void * data);
    ggml_backend *     cpu = context_of(backend)->cpu();
    ggml_backend_reg * reg = ggml.ggml_backend_dev_backend_reg(ggml.ggml_backend_get_device(cpu));
    auto set = reinterpret_cast<set_abort_callback_t>(ggml.ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_abort_callback"));
    if (set != nullptr) {
        set(cpu, callback, data);
    }
}

// device

static const char * hot_device_get_name(ggml_backend_device *) {
    return "Hot";
}

static const char * hot_device_get_description(ggml_backend_device *) {
    return "hot experts on a device, cold ones on the CPU";
}

static void hot_device_get_memory(ggml_backend_device *, size_t * free, size_t * total) {
    *free  = 0;
    *total = 0;
}

static int hot_device_get_type(ggml_backend_device *) {
    return DEVICE_ACCEL;
}

static void hot_device_get_props(ggml_backend_device * device, ggml_backend_dev_props * props) {
    props->name        = hot_device_get_name(device);
    props->description = hot_device_get_description(device);
    props->type        = DEVICE_ACCEL;
    props->device_id   = nullptr;
    hot_device_get_memory(device, &props->memory_free, &props->memory_total);
    props->caps = {
        /* .async                = */ false,
        /* .host_buffer          = */ false,
        /* .buffer_from_host_ptr = */ true,
        /* .events               = */ false,
        /* .mmap_support         = */ true,
    };
}

static const uint8_t hot_guid[16] = { 0x6d, 0x1f, 0x0b, 0x52, 0x9e, 0x33, 0x4a, 0xd8, 0xa7, 0x41, 0x5c, 0xe0, 0x18, 0x7a, 0xf4, 0x29 };

static ggml_backend * hot_device_init_backend(ggml_backend_device * device, const char *) {
    ggml_backend * cpu = ggml.ggml_backend_dev_init(ggml.ggml_backend_dev_by_type(DEVICE_CPU), nullptr);
    if (cpu == nullptr) {
        return nullptr;
    }
    std::lock_guard<std::mutex> lock(state().mutex);
    return new ggml_backend{
        /* .guid    = */ hot_guid,
        /* .iface   = */ hot_backend_i,
        /* .device  = */ device,
        /* .context = */ new hot_context(cpu, state().threadpool),
    };
}

static ggml_backend_buffer_type * hot_device_get_buffer_type(ggml_backend_device *) {
    return &hot_buft;
}

// A mapped file stays where it is: nothing of it is copied until an expert becomes resident.
static ggml_backend_buffer * hot_device_buffer_from_host_ptr(ggml_backend_device *, void * ptr, size_t size, size_t) {
    hot_buffer * context = new hot_buffer();
    context->base        = static_cast<char *>(ptr);
    {
        std::lock_guard<std::mutex> lock(state().mutex);
        context->model = state().opened;
    }
    return ggml.ggml_backend_buffer_init(&hot_buft, hot_buffer_i, context, size);
}

// The only rule of admission: multiplications with the routed experts of an opened model, and the
// activation between two of them.
static bool hot_device_supports_op(ggml_backend_device *, const ggml_tensor * op) {
    if (op->op == OP_MUL_MAT_ID) {
        return op->src[1]->type == TYPE_F32 && weight_of(op->src[0]).layer != nullptr;
    }
    if (op->op == OP_GLU && op->op_params[0] == GLU_SWIGLU) {
        const ggml_tensor * gate = op->src[0];
        return gate->op == OP_MUL_MAT_ID && weight_of(gate->src[0]).layer != nullptr;
    }
    return false;
}

// Whatever lies in host memory is read where it is, so the scheduler copies nothing for a split.
static bool hot_device_supports_buft(ggml_backend_device *, ggml_backend_buffer_type * buft) {
    return ggml.ggml_backend_buft_is_host(buft);
}

static const ggml_backend_device_i hot_device_i = {
    /* .get_name             = */ hot_device_get_name,
    /* .get_description      = */ hot_device_get_description,
    /* .get_memory           = */ hot_device_get_memory,
    /* .get_type             = */ hot_device_get_type,
    /* .get_props            = */ hot_device_get_props,
    /* .init_backend         = */ hot_device_init_backend,
    /* .get_buffer_type      = */ hot_device_get_buffer_type,
    /* .get_host_buffer_type = */ nullptr,
    /* .buffer_from_host_ptr = */ hot_device_buffer_from_host_ptr,
    /* .supports_op          = */ hot_device_supports_op,
    /* .supports_buft        = */ hot_device_supports_buft,
    /* .offload_op           = */ nullptr,
    /* .event_new            = */ nullptr,
    /* .event_free           = */ nullptr,
    /* .event_synchronize    = */ nullptr,
};

extern ggml_backend_reg hot_reg;

ggml_backend_device hot_device = {
    /* .iface   = */ hot_device_i,
    /* .reg     = */ &hot_reg,
    /* .context = */ nullptr,
};

// registry

static const char * hot_reg_get_name(ggml_backend_reg *) {
    return "Hot";
}

static size_t hot_reg_get_device_count(ggml_backend_reg *) {
    return 1;
}

static ggml_backend_device * hot_reg_get_device(ggml_backend_reg *, size_t) {
    return &hot_device;
}

static void * hot_reg_get_proc_address(ggml_backend_reg *, const char * name) {
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(hot_backend_set_n_threads);
    }
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return reinterpret_cast<void *>(hot_backend_set_abort_callback);
    }
    return nullptr;
}

ggml_backend_reg hot_reg = {
    /* .api_version = */ BACKEND_API_VERSION,
    /* .iface       = */ {
        /* .get_name         = */ hot_reg_get_name,
        /* .get_device_count = */ hot_reg_get_device_count,
        /* .get_device       = */ hot_reg_get_device,
        /* .get_proc_address = */ hot_reg_get_proc_address,
    },
    /* .context     = */ nullptr,
};

// C interface

static const char * text_or_null(const std::string & text) {
    static thread_local std::string kept;
    kept = text;
    return kept.empty() ? nullptr : kept.c_str();
}

static std::shared_ptr<hot_model> model_of(int32_t number) {
    std::lock_guard<std::mutex> lock(state().mutex);
    const auto                  found = state().models.find(number);
    return found != state().models.end() ? found->second : nullptr;
}

const char * dots_hot_start(void * libllama) {
    process_state &             s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (!s.started) {
        s.started       = true;
        s.start_problem = ggml.load(libllama);
        if (s.start_problem.empty()) {
            ggml.ggml_backend_register(&hot_reg);
        }
    }
    return text_or_null(s.start_problem);
}

void * dots_hot_buffer_type(void) {
    return &hot_buft;
}

void dots_hot_set_threadpool(void * threadpool) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().threadpool = static_cast<ggml_threadpool *>(threadpool);
}

int32_t dots_hot_open(const char * device, const char ** problem) {
    ggml_backend_device * found = nullptr;
    if (device != nullptr) {
        found = ggml.ggml_backend_dev_by_name(device);
        if (found == nullptr || found == &hot_device) {
            *problem = text_or_null(std::string("there is no device ") + device);
            return 0;
        }
    }
    process_state &             s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (s.opened != nullptr) {
        *problem = text_or_null("another model is being loaded");
        return 0;
    }
    s.opened         = std::make_shared<hot_model>();
    s.opened->device = found;
    s.models[++s.last] = s.opened;
    return s.last;
}

void dots_hot_loaded(int32_t model) {
    const auto                  found = model_of(model);
    std::lock_guard<std::mutex> lock(state().mutex);
    if (found != nullptr && state().opened == found) {
        state().opened = nullptr;
    }
}

void dots_hot_close(int32_t model) {
    dots_hot_loaded(model);
    std::shared_ptr<hot_model>  last_use = model_of(model);  // freed after the lock is
    std::lock_guard<std::mutex> lock(state().mutex);
    state().models.erase(model);
}

int32_t dots_hot_layers(int32_t model, dots_hot_layer * layers, int32_t n_max) {
    const auto found = model_of(model);
    if (found == nullptr) {
        return 0;
    }
    const std::vector<moe_layer *> all = found->layers();
    for (int32_t i = 0; i < n_max && size_t(i) < all.size(); i++) {
        std::shared_lock<std::shared_mutex> lock(all[i]->residency);
        layers[i] = {
            all[i]->index,        int32_t(all[i]->n_experts), int32_t(all[i]->expert_in.size()), all[i]->n_resident,
            all[i]->expert_nbytes(), all[i]->off,                0,
        };
    }
    return int32_t(all.size());
}

const char * dots_hot_reserve(int32_t model, int32_t layer, int32_t n_slots) {
    const auto found = model_of(model);
    return text_or_null(found != nullptr ? found->reserve(layer, n_slots) : "this model is closed");
}

const char * dots_hot_place(int32_t model, int32_t layer, int32_t slot, int32_t expert) {
    const auto found = model_of(model);
    return text_or_null(found != nullptr ? found->place(layer, slot, expert) : "this model is closed");
}

int32_t dots_hot_residents(int32_t model, int32_t layer, int32_t * expert_in, int32_t n_max) {
    const auto  found = model_of(model);
    moe_layer * which = found != nullptr ? found->layer(layer) : nullptr;
    if (which == nullptr) {
        return 0;
    }
    std::shared_lock<std::shared_mutex> lock(which->residency);
    const int32_t                       n_slots = int32_t(which->expert_in.size());
    std::copy_n(which->expert_in.begin(), std::min(n_slots, n_max), expert_in);
    return n_slots;
}

void dots_hot_set_trial(int32_t model, int32_t trial) {
    const auto found = model_of(model);
    if (found != nullptr) {
        found->trial = trial;
    }
}

int32_t dots_hot_read_counters(int32_t model, dots_hot_counters * counters) {
    const auto found = model_of(model);
    if (found == nullptr) {
        return 0;
    }
    const hot_counters & from = found->counters;
    *counters = {
        from.decode_hits, from.decode_misses,   from.prefill_hits, from.prefill_misses, from.uploads,
        from.uploaded_nbytes, from.cpu_ns, from.device_ns,    from.wait_ns,
    };
    return 1;
}

int32_t dots_hot_read_heat(int32_t model, int32_t layer, uint64_t * decode, uint64_t * prefill, int32_t n_max) {
    const auto  found = model_of(model);
    moe_layer * which = found != nullptr ? found->layer(layer) : nullptr;
    if (which == nullptr || !which->ready) {
        return 0;
    }
    const int32_t n = int32_t(std::min<int64_t>(which->n_experts, n_max));
    for (int32_t e = 0; e < n; e++) {
        decode[e]  = which->decode_heat[e].load(std::memory_order_relaxed);
        prefill[e] = which->prefill_heat[e].load(std::memory_order_relaxed);
    }
    return int32_t(which->n_experts);
}

const char * dots_hot_trace(int32_t model, const char * path) {
    const auto found = model_of(model);
    return text_or_null(found != nullptr ? found->trace_to(path) : "this model is closed");
}

const char * dots_hot_messages(int32_t model) {
    const auto found = model_of(model);
    return text_or_null(found != nullptr ? found->take_messages() : "");
}
