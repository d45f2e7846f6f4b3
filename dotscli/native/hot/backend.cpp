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

// A node to compute with what is pending, or now, if its experts have to be read.
static int add_piece(hot_context & context, ggml_context * ctx, std::vector<ggml_tensor *> & pending, ggml_tensor * node) {
    if (is_view_op(node)) {
        return STATUS_SUCCESS;
    }
    const expert_weight weight = node->op == OP_MUL_MAT_ID ? weight_of(node->src[0]) : expert_weight{ nullptr, PART_UP };
    if (weight.layer == nullptr || !weight.layer->tiered || ctx == nullptr) {
        pending.push_back(node);
        return STATUS_SUCCESS;
    }
    const int status = compute_nodes(context, ctx, pending);
    if (status != STATUS_SUCCESS) {
        return status;
    }
    ggml_cgraph * graph = graph_of(ctx, &node, 1);
    return graph != nullptr ? context.run_piece(*model_of(node->src[0]), *weight.layer, node->src[2], graph) : STATUS_ALLOC_FAILED;
}

static bool any_tiered(ggml_cgraph * graph) {
    for (int i = 0; i < ggml.ggml_graph_n_nodes(graph); i++) {
        const ggml_tensor * node = ggml.ggml_graph_node(graph, i);
        if (node->op == OP_MUL_MAT_ID && weight_of(node->src[0]).layer != nullptr && weight_of(node->src[0]).layer->tiered) {
            return true;
        }
    }
    return false;
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
            if (const int status = add_piece(context, ctx.get(), pending, node); status != STATUS_SUCCESS) {
                return status;
            }
            continue;
        }
        const std::shared_ptr<hot_model> model = model_of(found.up->src[0]);
        if (ctx == nullptr && found.layer->tiered) {
            return STATUS_ALLOC_FAILED;
        }
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
    // Where host memory holds every expert, the CPU can compute all of it as it came.
    if (ctx == nullptr && any_tiered(graph)) {
        return STATUS_ALLOC_FAILED;
    }
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
    // The usual case: one layer, nothing else.
    layer_nodes   found;
    ggml_tensor * four[4];
    const bool    one = n_nodes == 4 && layer_at(graph, 0, four, found);
    return one ? context.run(model_of(found.up->src[0]), found, graph) : compute_pieces(context, graph);
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
    context_of(backend)->set_abort_callback(callback, data);
}

}  // namespace hot
