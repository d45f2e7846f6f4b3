// One model's routed experts: which lie where, how often each is used, what moving them costs.
//
// This file knows nothing of graphs and nothing of how an expert is computed. Its functions are in
// model.cpp (what the model consists of, and what it has to say), residency.cpp and heat.cpp.
#pragma once

#include "hot/costs.h"
#include "hot/layer.h"
#include "hot/ram_tier.h"
#include "hot/upload.h"

#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace hot {

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
    std::atomic<uint64_t> direct_nbytes{ 0 };  // of both, those that weren't staged
    std::atomic<uint64_t> spared_layers{ 0 };  // computed by a thread fewer, because of uploads
    std::atomic<uint64_t> cpu_ns{ 0 };     // computing the misses
    std::atomic<uint64_t> device_ns{ 0 };  // handing work to the device and waiting for its rows
    std::atomic<uint64_t> wait_ns{ 0 };    // of that, waiting after the CPU was done
};

// Whether experts are being uploaded, by any thread.
class upload_times {
  public:
    // Now, or until a moment ago: they come in bursts.
    bool go_on() const;

    class mark {
      public:
        explicit mark(upload_times & times) : times_(times) { times_.n_++; }
        ~mark();
        mark(const mark &) = delete;
        mark & operator=(const mark &) = delete;

      private:
        upload_times & times_;
    };

  private:
    std::atomic<int>      n_{ 0 };
    std::atomic<uint64_t> ended_{ 0 };
};

// Whether experts that aren't resident go through the device for long prompts.
enum hot_streaming { STREAM_NEVER, STREAM_WHERE_IT_PAYS, STREAM_ALWAYS };

// For comparing the two ways of computing: nothing is counted as heat meanwhile.
enum hot_trial { TRIAL_NONE, TRIAL_DIVIDED, TRIAL_ON_CPU };

struct hot_model {
    ggml_backend_device * device = nullptr;  // null: count heat, compute everything on the CPU
    hot_counters          counters;
    stream_costs          costs;
    upload_times          uploading;
    // Null: all experts are in memory, or mapped. Begun before the load.
    std::unique_ptr<ram_tier> tier;
    std::atomic<int>      trial{ TRIAL_NONE };
    std::atomic<int>      streaming{ STREAM_WHERE_IT_PAYS };

    ~hot_model();

    // Before add_tensor(), if the tier has this tensor: its experts are spread to where the tier wants them,
    // and llama.cpp, which reads what it knows by name, doesn't find it. loaded() gives the names back.
    void spread(ggml_tensor * tensor, expert_part part, int index);
    void loaded();
    // While the model loads. Returns the layer whose tensor this is; null if it has such a tensor
    // already, of another model that is loaded at the same time.
    moe_layer * add_tensor(ggml_tensor * tensor, expert_part part, int index);
    // The tensor is about to be freed: the layer is no longer one of ours.
    void        forget_tensor(moe_layer & layer, expert_part part);
    moe_layer * layer(int index) const;
    std::vector<moe_layer *> layers() const;

    // Slots for `n_slots` experts of a layer; whatever lay there is forgotten. Empty, or why not.
    std::string reserve(int index, int n_slots);
    // Copies an expert into a slot; -1 empties it. May be called from any thread, at any time
    // between reserve() and the end of the model. Empty, or why not.
    std::string place(int index, int slot, int expert);

    void        count(moe_layer & layer, const ggml_tensor * ids);
    std::string trace_to(const char * path);  // null ends the trace

    // The device failed in this layer: it stays on the CPU from now on.
    void        switch_off(moe_layer & layer, const std::string & reason);
    // A computation failed for that reason.
    void        failed(const std::string & reason);
    std::string take_failure();
    // Something the user should hear of, each sentence once. take_messages() hands over the new ones.
    void        say_once(const std::string & sentence);
    std::string take_messages();

  private:
    // Guards the list, and is held last: a context asks for it with a layer's `residency` held.
    mutable std::mutex                      registering_;
    std::vector<std::unique_ptr<moe_layer>> layers_;  // by index, null for a dense layer

    void        leave_device(const moe_layer & layer);
    moe_layer & layer_to_fill(int index);  // made if there is none

    std::mutex                uploading_;  // one placement at a time
    std::unique_ptr<uploader> uploader_;

    std::mutex               talking_;  // guards what follows
    std::vector<std::string> messages_;
    std::string              failure_;
    size_t                   n_taken_ = 0;
    std::atomic<bool>        tracing_{ false };
    FILE *                   trace_ = nullptr;
};

}  // namespace hot
