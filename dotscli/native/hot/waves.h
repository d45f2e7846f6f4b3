// Streaming: experts that aren't resident are computed on the device all the same, where a long prompt
// gives them so many tokens that copying their weights is faster than computing them on the CPU.
//
// They go through two slabs in waves: while one wave is computed, the next is uploaded into the other
// slab. Residents stay where they are. How many are worth it is decided in costs.h; this file drives
// the waves and knows no chains and no pairs.
#pragma once

#include "hot/model.h"
#include "hot/pairs.h"
#include "hot/upload.h"

#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

namespace hot {

class expert_stream {
  public:
    explicit expert_stream(ggml_backend_device * device) : device_(device), uploader_(device) {}

    // Slabs for experts like this layer's; false if the device has no memory for them.
    bool prepare(const moe_layer & layer, int shape);
    // Experts in a wave of such a layer.
    static size_t wave_size(const moe_layer & layer);

    // Computes the waves in their order. `start` begins to compute one with these weights, `finish`
    // waits for all that was begun. False if the device fails.
    bool run(const moe_layer & layer, int shape, const std::vector<expert_load> & streamed, const std::vector<stream_wave> & waves,
             const std::function<bool(ggml_tensor * const weights[N_PARTS], const stream_wave & wave)> & start,
             const std::function<void()> & finish, hot_model & model);

  private:
    struct two_slabs {
        expert_slab slab[2];
    };

    ggml_backend_device *                               device_;
    uploader                                            uploader_;
    std::unordered_map<int, std::unique_ptr<two_slabs>> slabs_;  // by the layer's shape

    // False: an expert can't be read.
    bool upload(const moe_layer & layer, const expert_slab & slab, const std::vector<expert_load> & streamed, const stream_wave & wave,
                hot_model & model);
};

}  // namespace hot
