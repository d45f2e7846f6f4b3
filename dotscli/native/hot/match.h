// A MoE layer among the nodes of a graph: up, gate, GLU, down, as llama.cpp builds them.
#pragma once

#include "hot/layer.h"

namespace hot {

struct layer_nodes {
    moe_layer *   layer = nullptr;
    ggml_tensor * up    = nullptr;
    ggml_tensor * gate  = nullptr;
    ggml_tensor * glu   = nullptr;
    ggml_tensor * down  = nullptr;
};

// Whether nodes[0..3] are a whole chain that may be computed as one. Anything unusual (an output that
// somebody asked for, activations per slot, ids that differ) is left to be computed node by node.
bool match_layer(ggml_tensor * const nodes[4], layer_nodes & found);

}  // namespace hot
