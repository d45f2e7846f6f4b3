#include "hot/layer.h"

#include <algorithm>
#include <cstring>

namespace hot {

static constexpr int64_t MAX_EXPERTS = INT16_MAX;  // a trace writes ids as 16 bits

bool moe_layer::complete() const {
    const ggml_tensor * up   = host[PART_UP];
    const ggml_tensor * gate = host[PART_GATE];
    const ggml_tensor * down = host[PART_DOWN];
    if (up == nullptr || gate == nullptr || down == nullptr) {
        return false;
    }
    for (const ggml_tensor * tensor : host) {
        if (tensor->ne[2] != up->ne[2] || tensor->ne[3] != 1 || tensor->nb[2] == 0 || tensor->data == nullptr ||
            tensor->nb[2] < part_nbytes(tensor)) {
            return false;
        }
    }
    return up->ne[2] >= 1 && up->ne[2] <= MAX_EXPERTS && gate->ne[0] == up->ne[0] && gate->ne[1] == up->ne[1] &&
        down->ne[0] == up->ne[1] && down->ne[1] == up->ne[0];
}

void moe_layer::begin() {
    n_embd    = host[PART_UP]->ne[0];
    n_ff      = host[PART_UP]->ne[1];
    n_experts = host[PART_UP]->ne[2];
    slot_of.assign(n_experts, -1);
    decode_heat  = std::make_unique<std::atomic<uint64_t>[]>(n_experts);
    prefill_heat = std::make_unique<std::atomic<uint64_t>[]>(n_experts);
    for (int64_t e = 0; e < n_experts; e++) {
        decode_heat[e]  = 0;
        prefill_heat[e] = 0;
    }
}

void moe_layer::drop_slots() {
    slab.clear();
    expert_in.clear();
    std::fill(slot_of.begin(), slot_of.end(), -1);
    n_resident = 0;
}

size_t moe_layer::expert_nbytes() const {
    size_t nbytes = 0;
    for (const ggml_tensor * tensor : host) {
        nbytes += tensor != nullptr ? part_nbytes(tensor) : 0;
    }
    return nbytes;
}

size_t part_nbytes(const ggml_tensor * part) {
    return part->nb[1] * size_t(part->ne[1]);
}

int32_t expert_at(const ggml_tensor * ids, int64_t used, int64_t token) {
    int32_t id;
    memcpy(&id, static_cast<const char *>(ids->data) + token * ids->nb[1] + used * ids->nb[0], sizeof id);
    return id;
}

}  // namespace hot
