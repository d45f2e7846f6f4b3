// The hot-expert backend: an ACCEL device under llama.cpp whose buffer type is host memory.
//
// llama.cpp gives every context a backend of this device, and its scheduler hands over each MoE layer
// as one split: MUL_MAT_ID up, MUL_MAT_ID gate, GLU, MUL_MAT_ID down. Here such a graph is taken apart
// into layers and the rest; what happens to a layer then stands in divide.cpp. The device itself is in
// device.cpp, its buffers are in buffer.cpp.
#include "hot/backend.h"

#include "hot/buffer.h"
#include "hot/context.h"
#include "hot/process.h"

#include <memory>
#include <new>

namespace hot {

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

static void count_heat(const ggml_tensor * up) {
    const expert_weight weight = weight_of(up->src[0]);
    if (weight.layer != nullptr && weight.part == PART_UP) {
        model_of(up->src[0])->count(*weight.layer, up->src[2]);
    }
}

// In a graph made for it, whose room `ctx` has.
static ggml_cgraph * graph_of(ggml_context * ctx, ggml_tensor * const * nodes, int n_nodes) {
    ggml.ggml_reset(ctx);
    ggml_cgraph * graph = ggml.ggml_new_graph_custom(ctx, n_nodes, false);
    for (int i = 0; graph != nullptr && i < n_nodes; i++) {
        ggml.ggml_graph_add_node(graph, nodes[i]);
    }
    return graph;
}

static int compute_nodes(hot_context & context, ggml_context * ctx, std::vector<ggml_tensor *> & nodes) {
    if (nodes.empty()) {
        return STATUS_SUCCESS;
    }
    ggml_cgraph * graph  = graph_of(ctx, nodes.data(), int(nodes.size()));
    const int     status = graph != nullptr ? context.forward(graph) : STATUS_ALLOC_FAILED;
    nodes.clear();
    return status;
}

// The layer that begins at node i of a graph.
static bool layer_at(ggml_cgraph * graph, int i, ggml_tensor * four[4], layer_nodes & found) {
    if (i + 4 > ggml.ggml_graph_n_nodes(graph)) {
        return false;
    }
    for (int k = 0; k < 4; k++) {
        four[k] = ggml.ggml_graph_node(graph, i + k);
    }
    return match_layer(four, found);
}

// Pieces of a chain, when an eval callback looks at nodes in between, or a chain with views around.
static int compute_pieces(hot_context & context, ggml_cgraph * graph) {
    const int         n_nodes = ggml.ggml_graph_n_nodes(graph);
    const context_ptr ctx     = new_context(ggml.ggml_graph_overhead_custom(n_nodes, false));
    layer_nodes       found;
    ggml_tensor *     four[4];

    std::vector<ggml_tensor *> pending;
    for (int i = 0; i < n_nodes; i++) {
        if (!layer_at(graph, i, four, found)) {
            ggml_tensor * node = ggml.ggml_graph_node(graph, i);
            if (!is_view_op(node)) {
                pending.push_back(node);
            }
            continue;
        }
        const std::shared_ptr<hot_model> model = model_of(found.up->src[0]);
        if (ctx == nullptr) {
            model->switch_off(*found.layer, "no memory left to build graphs in");
            break;
        }
        int status = compute_nodes(context, ctx.get(), pending);
        if (status == STATUS_SUCCESS) {
            ggml_cgraph * chain = graph_of(ctx.get(), four, 4);
            status              = chain != nullptr ? context.run(model, found, chain) : STATUS_ALLOC_FAILED;
        }
        if (status != STATUS_SUCCESS) {
            return status;
        }
        i += 3;
    }
    // Host memory holds every expert: the CPU can compute all of it as it came.
    return ctx != nullptr ? compute_nodes(context, ctx.get(), pending) : context.forward(graph);
}

static int compute(hot_context & context, ggml_cgraph * graph) {
    const int n_nodes = ggml.ggml_graph_n_nodes(graph);
    for (int i = 0; i < n_nodes; i++) {
        const ggml_tensor * node = ggml.ggml_graph_node(graph, i);
        if (node->op == OP_MUL_MAT_ID) {
            count_heat(node);
        }
    }
    if (n_nodes != 4) {
        return compute_pieces(context, graph);
    }
    // The usual case: one layer, nothing else.
    layer_nodes   found;
    ggml_tensor * four[4];
    return layer_at(graph, 0, four, found) ? context.run(model_of(found.up->src[0]), found, graph) : context.forward(graph);
}

static int hot_backend_graph_compute(ggml_backend * backend, ggml_cgraph * graph) {
    try {
        return compute(*context_of(backend), graph);
    } catch (const std::bad_alloc &) {
        return STATUS_ALLOC_FAILED;
    }
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

static const uint8_t hot_guid[16] = { 0x6d, 0x1f, 0x0b, 0x52, 0x9e, 0x33, 0x4a, 0xd8, 0xa7, 0x41, 0x5c, 0xe0, 0x18, 0x7a, 0xf4, 0x29 };

ggml_backend * new_backend(ggml_backend_device * device) {
    ggml_backend * cpu = ggml.ggml_backend_dev_init(ggml.ggml_backend_dev_by_type(DEVICE_CPU), nullptr);
    if (cpu == nullptr) {
        return nullptr;
    }
    std::lock_guard<std::mutex>  lock(state().mutex);
    std::unique_ptr<hot_context> context(new (std::nothrow) hot_context(cpu, state().threadpool));
    if (context == nullptr) {
        ggml.ggml_backend_free(cpu);
        return nullptr;
    }
    ggml_backend * made = new (std::nothrow) ggml_backend{
        /* .guid    = */ hot_guid,
        /* .iface   = */ hot_backend_i,
        /* .device  = */ device,
        /* .context = */ context.get(),
    };
    if (made != nullptr) {
        context.release();
    }
    return made;
}

void set_n_threads(ggml_backend * backend, int n_threads) {
    context_of(backend)->set_n_threads(n_threads);
}

void set_abort_callback(ggml_backend * backend, ggml_abort_callback callback, void * data) {
    typedef void (*set_abort_callback_t)(ggml_backend * backend, ggml_abort_callback callback, void * data);
    ggml_backend *     cpu = context_of(backend)->cpu();
    ggml_backend_reg * reg = ggml.ggml_backend_dev_backend_reg(ggml.ggml_backend_get_device(cpu));
    auto set = reinterpret_cast<set_abort_callback_t>(ggml.ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_abort_callback"));
    if (set != nullptr) {
        set(cpu, callback, data);
    }
}

}  // namespace hot
