#include "hot/chain.h"

#include <algorithm>

namespace hot {

static constexpr size_t GRAPH_SIZE     = 16;
static constexpr size_t MAX_TENSORS    = 16;
static constexpr size_t HOST_ALIGNMENT = 64;

size_t chain_meta_nbytes() {
    return MAX_TENSORS * ggml.ggml_tensor_overhead() + 3 * ggml.ggml_graph_overhead_custom(GRAPH_SIZE, false);
}

chain build_chain(ggml_context * ctx, ggml_tensor * const weights[N_PARTS], int64_t n_tokens, int64_t n_pairs, int64_t n_dst_rows) {
    if (ctx == nullptr) {
        return chain();
    }
    const int64_t n_embd = weights[PART_UP]->ne[0];

    chain         c;
    ggml_tensor * in = nullptr;
    if (n_tokens == 1) {
        c.x   = ggml.ggml_new_tensor_3d(ctx, TYPE_F32, n_embd, 1, 1);
        c.ids = ggml.ggml_new_tensor_2d(ctx, TYPE_I32, n_pairs, 1);
        in    = c.x;
    } else {
        c.x      = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, n_embd, n_tokens);
        c.tokens = ggml.ggml_new_tensor_1d(ctx, TYPE_I32, n_pairs);
        c.ids    = ggml.ggml_new_tensor_2d(ctx, TYPE_I32, 1, n_pairs);
        c.xg     = ggml.ggml_get_rows(ctx, c.x, c.tokens);
        c.xg3    = ggml.ggml_reshape_3d(ctx, c.xg, n_embd, 1, n_pairs);
        in       = c.xg3;
    }
    c.up   = ggml.ggml_mul_mat_id(ctx, weights[PART_UP], in, c.ids);
    c.gate = ggml.ggml_mul_mat_id(ctx, weights[PART_GATE], in, c.ids);
    c.glu  = ggml.ggml_swiglu_split(ctx, c.gate, c.up);
    c.down = ggml.ggml_mul_mat_id(ctx, weights[PART_DOWN], c.glu, c.ids);

    ggml_tensor * last = c.down;
    if (n_dst_rows > 0) {
        c.dst    = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, n_embd, n_dst_rows);
        c.rows   = ggml.ggml_new_tensor_1d(ctx, TYPE_I32, n_pairs);
        c.down2  = ggml.ggml_reshape_2d(ctx, c.down, n_embd, n_pairs);
        c.result = ggml.ggml_set_rows(ctx, c.dst, c.down2, c.rows);
        last     = c.result;
    }
    c.graph = ggml.ggml_new_graph_custom(ctx, GRAPH_SIZE, false);
    if (c.graph != nullptr) {
        ggml.ggml_build_forward_expand(c.graph, last);
    }
    return c;
}

bool halve(ggml_context * ctx, chain & built) {
    built.first = ggml.ggml_new_graph_custom(ctx, GRAPH_SIZE, false);
    built.rest  = ggml.ggml_new_graph_custom(ctx, GRAPH_SIZE, false);
    if (built.first == nullptr || built.rest == nullptr) {
        return false;
    }
    ggml.ggml_build_forward_expand(built.first, built.glu);
    for (ggml_tensor * node : { built.down, built.down2, built.result }) {
        if (node != nullptr) {
            ggml.ggml_graph_add_node(built.rest, node);
        }
    }
    return true;
}

void set_weights(chain & built, ggml_tensor * const weights[N_PARTS]) {
    built.up->src[0]   = weights[PART_UP];
    built.gate->src[0] = weights[PART_GATE];
    built.down->src[0] = weights[PART_DOWN];
}

std::string unsupported(ggml_backend_device * device, ggml_tensor * const weights[N_PARTS]) {
    const context_ptr ctx = new_context(2 * chain_meta_nbytes());
    for (int64_t n_tokens : { 1, 4 }) {
        const chain asked = build_chain(ctx.get(), weights, n_tokens, 4, 0);
        if (asked.graph == nullptr) {
            return "no memory left to build graphs in";
        }
        for (const ggml_tensor * op : { asked.xg, asked.up, asked.gate, asked.glu, asked.down }) {
            if (op != nullptr && !ggml.ggml_backend_dev_supports_op(device, op)) {
                return std::string("this device has no ") + ggml.ggml_op_name(op->op) + " for " + ggml.ggml_type_name(op->src[0]->type);
            }
        }
    }
    return "";
}

static size_t padded(size_t nbytes, size_t alignment) {
    return (nbytes + alignment - 1) / alignment * alignment;
}

// down takes over xg's room: xg is read for the last time before down is written.
size_t host_scratch_nbytes(const chain & c) {
    size_t nbytes = padded(ggml.ggml_nbytes(c.down), HOST_ALIGNMENT);
    for (const ggml_tensor * tensor : { c.up, c.gate, c.glu }) {
        nbytes += padded(ggml.ggml_nbytes(tensor), HOST_ALIGNMENT);
    }
    return nbytes;
}

void place_on_host(chain & c, char * scratch) {
    for (ggml_tensor * tensor : { c.up, c.gate, c.glu, c.down }) {
        tensor->data = scratch;
        scratch += padded(ggml.ggml_nbytes(tensor), HOST_ALIGNMENT);
    }
    if (c.xg != nullptr) {
        c.xg->data  = c.down->data;
        c.xg3->data = c.down->data;
    }
    if (c.down2 != nullptr) {
        c.down2->data = c.down->data;
    }
}

static size_t device_nbytes(const ggml_tensor * tensor, ggml_backend_buffer_type * buft) {
    const size_t nbytes = std::max(ggml.ggml_backend_buft_get_alloc_size(buft, tensor), ggml.ggml_nbytes(tensor));
    return padded(nbytes, ggml.ggml_backend_buft_get_alignment(buft));
}

static size_t shared_nbytes(const chain & c, ggml_backend_buffer_type * buft) {
    const size_t down = device_nbytes(c.down, buft);
    return c.xg != nullptr ? std::max(down, device_nbytes(c.xg, buft)) : down;
}

size_t device_scratch_nbytes(const chain & c, ggml_backend_buffer_type * buft) {
    size_t nbytes = shared_nbytes(c, buft);
    for (const ggml_tensor * tensor : { c.x, c.tokens, c.ids, c.up, c.gate, c.glu }) {
        if (tensor != nullptr) {
            nbytes += device_nbytes(tensor, buft);
        }
    }
    return nbytes;
}

bool place_on_device(chain & c, ggml_backend_buffer * buffer) {
    ggml_backend_buffer_type * buft = ggml.ggml_backend_buffer_get_type(buffer);
    char *                     at   = static_cast<char *>(ggml.ggml_backend_buffer_get_base(buffer));
    size_t                     left = ggml.ggml_backend_buffer_get_size(buffer);

    // ggml ends the process over a tensor that reaches past the end of its buffer.
    const auto put = [&](ggml_tensor * tensor, size_t nbytes) {
        return nbytes <= left && ggml.ggml_backend_tensor_alloc(buffer, tensor, at) == STATUS_SUCCESS;
    };
    for (ggml_tensor * tensor : { c.x, c.tokens, c.ids, c.up, c.gate, c.glu }) {
        if (tensor != nullptr) {
            const size_t nbytes = device_nbytes(tensor, buft);
            if (!put(tensor, nbytes)) {
                return false;
            }
            at += nbytes;
            left -= nbytes;
        }
    }
    if (c.xg != nullptr && (!put(c.xg, device_nbytes(c.xg, buft)) || ggml.ggml_backend_view_init(c.xg3) != STATUS_SUCCESS)) {
        return false;
    }
    return put(c.down, device_nbytes(c.down, buft));
}

}  // namespace hot
