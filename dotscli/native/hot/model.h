// One model's routed experts: which lie where, how often each is used, what moving them costs.
//
// A layer's three weight tensors stay in host memory, where llama.cpp mapped them. Beside them lie
// three slabs on the hot device, [ne0, ne1, n_slots] each, whose slots hold byte copies of experts.
// This file knows nothing of graphs and nothing of how an expert is computed.
#pragma once

#include "hot/ggml_calls.h"
#include "hot/costs.h"
#include "hot/slab.h"

#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

namespace hot {

// Up to this many tokens a batch counts as decoding: one token, or a few guessed ahead.
constexpr int64_t DECODE_TOKENS = 8;

struct moe_layer {
    int     index     = -1;
    int64_t n_embd    = 0;
    int64_t n_ff      = 0;
    int64_t n_experts = 0;

    ggml_tensor * host[N_PARTS] = {};     // the model's own tensors; they outlive every computation
    bool          ready         = false;  // all three are there and fit each other

    // Held shared while a chain runs, exclusively to change anything down to `n_resident`.
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

    bool   complete() const;
    size_t expert_nbytes() const;  // of the three parts together
};

// The expert that ids [n_used, n_tokens] names; its rows may be strided.
int32_t expert_at(const ggml_tensor * ids, int64_t used, int64_t token);

// Sums over all layers and contexts; a pair is one token at one of its experts.
struct hot_counters {
    std::atomic<uint64_t> decode_hits{ 0 };
    std::atomic<uint64_t> decode_misses{ 0 };
    std::atomic<uint64_t> prefill_hits{ 0 };
    std::atomic<uint64_t> prefill_misses{ 0 };
    std::atomic<uint64_t> uploads{ 0 };
    std::atomic<uint64_t> uploaded_nbytes{ 0 };
    std::atomic<uint64_t> streamed_experts{ 0 };
    std::atomic<uint64_t> streamed_nbytes{ 0 };
    std::atomic<uint64_t> cpu_ns{ 0 };     // computing the misses
    std::atomic<uint64_t> device_ns{ 0 };  // handing work to the device and waiting for its rows
    std::atomic<uint64_t> wait_ns{ 0 };    // of that, waiting after the CPU was done
};

// Whether experts that aren't resident go through the device for long prompts.
enum hot_streaming { STREAM_NEVER, STREAM_WHERE_IT_PAYS, STREAM_ALWAYS };

// For comparing the two ways of computing: nothing is counted as heat meanwhile.
enum hot_trial { TRIAL_NONE, TRIAL_DIVIDED, TRIAL_ON_CPU };

struct hot_model {
    ggml_backend_device * device = nullptr;  // null: count heat, compute everything on the CPU
    hot_counters          counters;
    stream_costs          costs;
    std::atomic<int>      trial{ TRIAL_NONE };
    std::atomic<int>      streaming{ STREAM_WHERE_IT_PAYS };

    ~hot_model();

    // While the model loads. Returns the layer whose tensor this is, or null.
    moe_layer * add_tensor(ggml_tensor * tensor, expert_part part, int index);
    moe_layer * layer(int index) const;
    std::vector<moe_layer *> layers() const;

    // Slots for `n_slots` experts of a layer; whatever lay there is forgotten. Empty, or why not.
    std::string reserve(int index, int n_slots);
    // Copies an expert into a slot; -1 empties it. May be called from any thread, at any time
    // between reserve() and the end of the model. Empty, or why not.
    std::string place(int index, int slot, int expert);
    // The device failed in this layer: it stays on the CPU from now on.
    void switch_off(moe_layer & layer, const std::string & reason);

    void        count(moe_layer & layer, const ggml_tensor * ids);
    std::string trace_to(const char * path);  // null ends the trace

    // Something the user should hear of, each sentence once. take_messages() hands over the new ones.
    void        say_once(const std::string & sentence);
    std::string take_messages();

  private:
    std::vector<std::unique_ptr<moe_layer>> layers_;  // by index, null for a dense layer

    std::mutex                uploading_;  // one placement at a time
    std::unique_ptr<uploader> uploader_;

    std::mutex               talking_;  // guards what follows
    std::vector<std::string> messages_;
    size_t                   n_taken_ = 0;
    std::atomic<bool>        tracing_{ false };
    FILE *                   trace_ = nullptr;

};

}  // namespace hot
