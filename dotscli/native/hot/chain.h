// A chain: the graph that takes some (token, expert) pairs of one layer through their experts.
//
//   one token:    x [n_embd,1,1], ids [n_pairs,1] -> up, gate [n_ff,n_pairs,1] -> glu -> down
//   more tokens:  x [n_embd,T], tokens [n_pairs] -> xg [n_embd,1,n_pairs], ids [1,n_pairs] -> ... -> down
//
// Both sides use the same chains, in memory of their own, and a device is asked about them before it
// gets any. This file builds and lays out; it computes nothing and knows nothing of residency.
#pragma once

#include "hot/ggml_calls.h"

#include <string>

namespace hot {

enum expert_part { PART_UP, PART_GATE, PART_DOWN, N_PARTS };

struct chain {
    ggml_cgraph * graph = nullptr;
    // The same in two halves, where that was asked for: up to the GLU, and what needs down's weights.
    ggml_cgraph * first = nullptr;
    ggml_cgraph * rest  = nullptr;
    // Leaves, filled before each run. `tokens`, `rows` and `dst` are null where there is no need.
    ggml_tensor * x      = nullptr;
    ggml_tensor * tokens = nullptr;  // [n_pairs] which row of x
    ggml_tensor * ids    = nullptr;  // which expert, or which slot
    ggml_tensor * rows   = nullptr;  // [n_pairs] which row of dst
    ggml_tensor * dst    = nullptr;  // [n_embd, n_dst_rows]
    // Nodes.
    ggml_tensor * xg     = nullptr;
    ggml_tensor * xg3    = nullptr;  // views xg
    ggml_tensor * up     = nullptr;
    ggml_tensor * gate   = nullptr;
    ggml_tensor * glu    = nullptr;
    ggml_tensor * down   = nullptr;  // [n_embd, n_pairs], where its rows lie after a run
    ggml_tensor * down2  = nullptr;  // views down
    ggml_tensor * result = nullptr;  // views dst
};

// Room that a context needs for one chain.
size_t chain_meta_nbytes();

// Args: weights of the layer's parts; n_dst_rows > 0 adds a scatter of down's rows into dst.
// A chain without a graph if there is no context.
chain build_chain(ggml_context * ctx, ggml_tensor * const weights[N_PARTS], int64_t n_tokens, int64_t n_pairs, int64_t n_dst_rows);

// Makes the two halves of a chain, in the context that it lies in. False if there is no room.
bool halve(ggml_context * ctx, chain & built);

// Points a chain that was built for one layer at another one with the same types and shapes.
void set_weights(chain & built, ggml_tensor * const weights[N_PARTS]);

// Asks the device about every operation of both kinds of chain, with the weights as they lie there.
// Empty, or what it can't do.
std::string unsupported(ggml_backend_device * device, ggml_tensor * const weights[N_PARTS]);

// What lies between the leaves and down's rows, in host memory; x, tokens, ids, rows and dst point
// at memory of the caller's and take no room.
size_t host_scratch_nbytes(const chain & built);
void   place_on_host(chain & built, char * scratch);

// The same in a buffer of the device, with x, tokens and ids. False if it is too small or the device
// refuses.
size_t device_scratch_nbytes(const chain & built, ggml_backend_buffer_type * buft);
bool   place_on_device(chain & built, ggml_backend_buffer * buffer);

}  // namespace hot
