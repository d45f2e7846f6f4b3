#include "hot/upload.h"

#include <algorithm>
#include <cstring>

namespace hot {

static constexpr size_t PINNED_HALF = size_t(4) << 20;

uploader::uploader(ggml_backend_device * device) : backend_(ggml.ggml_backend_dev_init(device, nullptr)) {
    ggml_backend_buffer_type * buft = ggml.ggml_backend_dev_host_buffer_type(device);
    if (backend_ != nullptr && buft != nullptr) {
        pinned_ = ggml.ggml_backend_buft_alloc_buffer(buft, 2 * PINNED_HALF);
    }
}

uploader::~uploader() {
    if (pinned_ != nullptr) {
        ggml.ggml_backend_buffer_free(pinned_);
    }
    if (backend_ != nullptr) {
        ggml.ggml_backend_free(backend_);
    }
}

void uploader::copy(ggml_tensor * const host[N_PARTS], const expert_slab & slab, int64_t expert, int64_t slot) {
    for (int part = 0; part < N_PARTS; part++) {
        const size_t nbytes = host[part]->nb[2];
        copy_part(slab.weights[part], static_cast<const char *>(host[part]->data) + expert * nbytes, slot * nbytes, nbytes);
    }
}

void uploader::wait() {
    if (backend_ != nullptr) {
        ggml.ggml_backend_synchronize(backend_);
    }
}

// Through pinned memory where there is some: reading the file's pages overlaps with the transfer.
void uploader::copy_part(ggml_tensor * to, const char * source, size_t offset, size_t nbytes) {
    if (pinned_ == nullptr) {
        ggml.ggml_backend_tensor_set(to, source, offset, nbytes);
        return;
    }
    char * base = static_cast<char *>(ggml.ggml_backend_buffer_get_base(pinned_));
    for (size_t done = 0, i = 0; done < nbytes; done += PINNED_HALF, i++) {
        const size_t n    = std::min(PINNED_HALF, nbytes - done);
        char *       half = base + (i % 2) * PINNED_HALF;
        if (done == 0) {
            wait();  // the part before may still use this half
        }
        memcpy(half, source + done, n);
        wait();
        ggml.ggml_backend_tensor_set_async(backend_, to, half, offset + done, n);
    }
}

}  // namespace hot
