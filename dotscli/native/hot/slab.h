// Room for some experts of a layer on a device, and the way of their bytes into it.
//
// A slab has the types and shapes of the layer's three weights, [ne0, ne1, n_slots] each. This file
// knows neither which experts lie there nor why.
#pragma once

#include "hot/ggml_calls.h"

#include <string>

namespace hot {

enum expert_part { PART_UP, PART_GATE, PART_DOWN, N_PARTS };

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
    ggml_context *        ctx_              = nullptr;
    ggml_backend_buffer * buffers_[N_PARTS] = {};

    std::string take_memory(ggml_backend_device * device, ggml_tensor * const host[N_PARTS], int64_t n_slots);
};

// Copies experts from the host into slabs, on a stream of its own. One thread at a time.
class uploader {
  public:
    explicit uploader(ggml_backend_device * device);
    ~uploader();

    // The whole expert may be there only after wait().
    void copy(ggml_tensor * const host[N_PARTS], const expert_slab & slab, int64_t expert, int64_t slot);
    void wait();

  private:
    ggml_backend *        backend_;  // null: the device has no further stream, and copies block
    ggml_backend_buffer * pinned_ = nullptr;

    void copy_part(ggml_tensor * to, const char * source, size_t offset, size_t nbytes);
};

}  // namespace hot
