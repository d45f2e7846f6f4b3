// One MoE layer: its weights on the host, the slots on the device, how often each expert is used.
//
// A layer's three weight tensors stay in host memory, where llama.cpp mapped them. Beside them lie
// three slabs on the hot device, [ne0, ne1, n_slots] each, whose slots hold byte copies of experts.
#pragma once

#include "hot/slab.h"

#include <atomic>
#include <memory>
#include <shared_mutex>
#include <vector>

namespace hot {

// Up to this many tokens a batch counts as decoding: one token, or a few guessed ahead.
constexpr int64_t DECODE_TOKENS = 8;

struct moe_layer {
    int     index     = -1;
    int64_t n_embd    = 0;
    int64_t n_ff      = 0;
    int64_t n_experts = 0;

    // The model's own tensors, null again when it is freed; they outlive every computation.
    ggml_tensor *     host[N_PARTS] = {};
    std::atomic<bool> ready{ false };  // all three are there and fit each other

    // Held shared while a chain runs, exclusively to change `host` or anything down to `n_resident`.
    // An upload needs no lock: it fills a slot that no map shows.
    std::shared_mutex     residency;
    expert_slab           slab;
    std::vector<int32_t>  slot_of;    // [n_experts], -1: not on the device
    std::vector<int32_t>  expert_in;  // [n_slots], -1: free
    std::atomic<int>      n_resident{ 0 };

    std::atomic<bool> off{ false };  // the device failed here: everything on the CPU from then on

    // Tokens routed to each expert, [n_experts] each.
    std::unique_ptr<std::atomic<uint64_t>[]> decode_heat;
    std::unique_ptr<std::atomic<uint64_t>[]> prefill_heat;

    // Whether the three weights are those of a layer of experts.
    bool complete() const;
    // From `host`, when they are: the shape, no expert resident, no heat.
    void begin();
    // No slots, and whatever lay there is forgotten. `residency` is held exclusively.
    void drop_slots();

    size_t expert_nbytes() const;  // of the three parts together

    bool tiered = false;  // not all experts are in memory: model.tier is asked first
};

// Bytes of one expert in such a tensor; the next one may begin later.
size_t part_nbytes(const ggml_tensor * part);

// The expert that ids [n_used, n_tokens] names; its rows may be strided.
int32_t expert_at(const ggml_tensor * ids, int64_t used, int64_t token);

}  // namespace hot
