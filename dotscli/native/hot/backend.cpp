// The hot-expert backend: an ACCEL device under llama.cpp whose buffer type is host memory.
//
// llama.cpp gives every context a backend of this device, and its scheduler hands over each MoE layer
// as one split: MUL_MAT_ID up, MUL_MAT_ID gate, GLU, MUL_MAT_ID down. What happens to it then stands in
// divide.cpp. This file holds what ggml asks of a backend, in the order in which ggml's own
// backends have it: backend, device, registry. Its buffers are in buffer.cpp.
#include "hot/buffer.h"
#include "hot/context.h"
#include "hot/process.h"

#include <cstring>

namespace hot {

process_state & state() {
    static process_state * the_state = new process_state();
    return *the_state;
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
        model_of(up->src[0])->count(*weight.layer, up->src[2]);
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
            return context.run(model_of(found.up->src[0]), found, graph);
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
        const int status = context.run(model_of(found.up->src[0]), found, chain);
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

static ggml_backend_buffer * hot_device_buffer_from_host_ptr(ggml_backend_device *, void * ptr, size_t size, size_t) {
    return buffer_over(ptr, size);
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

}  // namespace hot
