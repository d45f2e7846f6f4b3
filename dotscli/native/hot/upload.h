// The way of an expert's bytes from the host into a slab.
#pragma once

#include "hot/slab.h"

namespace hot {

// Copies on a stream of its own. One thread at a time.
class uploader {
  public:
    explicit uploader(ggml_backend_device * device);
    ~uploader();
    uploader(const uploader &) = delete;
    uploader & operator=(const uploader &) = delete;

    // The whole expert may be there only after wait().
    void copy(ggml_tensor * const host[N_PARTS], const expert_slab & slab, int64_t expert, int64_t slot);
    void wait();

  private:
    ggml_backend *        backend_;  // null: the device has no further stream, and copies block
    ggml_backend_buffer * pinned_ = nullptr;

    void copy_part(ggml_tensor * to, const char * source, size_t offset, size_t nbytes);
};

}  // namespace hot
