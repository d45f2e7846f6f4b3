// Room for some experts of a layer on a device.
//
// A slab has the types and shapes of the layer's three weights, [ne0, ne1, n_slots] each. This file
// knows neither which experts lie there, nor why, nor how they got there.
#pragma once

#include "hot/chain.h"

#include <string>

namespace hot {

struct expert_slab {
    ggml_tensor * weights[N_PARTS] = {};

    expert_slab() = default;
    ~expert_slab();
    expert_slab(const expert_slab &) = delete;
    expert_slab & operator=(const expert_slab &) = delete;

    // Slots for experts like those of `host`. Empty, or why there are none.
    std::string allocate(ggml_backend_device * device, ggml_tensor * const host[N_PARTS], int64_t n_slots);
    void        clear();

  private:
    context_ptr           ctx_;
    ggml_backend_buffer * buffers_[N_PARTS] = {};

    std::string take_memory(ggml_backend_device * device, ggml_tensor * const host[N_PARTS], int64_t n_slots);
};

}  // namespace hot
