#include "hot/match.h"

#include "hot/buffer.h"

namespace hot {

bool match_layer(ggml_tensor * const nodes[4], layer_nodes & found) {
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

}  // namespace hot
