#include "hot/upload.h"

#include "hot/clock.h"
#include "hot/host_memory.h"

#include <algorithm>
#include <cstring>

namespace hot {

static constexpr size_t PINNED_HALF  = size_t(4) << 20;
static constexpr size_t DIRECT_PIECE = size_t(512) << 10;  // larger ones are hardly faster

void way_choice::took(size_t nbytes, double seconds) {
    if (n_ < 2 * N_TRIES) {
        seconds_[way_][n_ / 2] = seconds / nbytes;
    }
    n_ = (n_ + 1) % PERIOD;
    if (n_ < 2 * N_TRIES) {
        way_ = n_ % 2 == 0 ? WAY_STAGED : WAY_DIRECT;
    } else if (n_ == 2 * N_TRIES) {
        for (double(&tries)[N_TRIES] : seconds_) {
            std::nth_element(tries, tries + N_TRIES / 2, tries + N_TRIES);
        }
        way_ = seconds_[WAY_DIRECT][N_TRIES / 2] < seconds_[WAY_STAGED][N_TRIES / 2] ? WAY_DIRECT : WAY_STAGED;
    }
}

uploader::uploader(ggml_backend_device * device) : backend_(ggml.ggml_backend_dev_init(device, nullptr)) {
    if (backend_ != nullptr) {
        pinned_ = pinned_memory(ggml.ggml_backend_dev_host_buffer_type(device), 2 * PINNED_HALF);
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
    if (nbytes_ == 0) {
        began_ = now_ns();
    }
    for (int part = 0; part < N_PARTS; part++) {
        const size_t nbytes = part_nbytes(host[part]);
        const char * source = static_cast<const char *>(host[part]->data) + expert * host[part]->nb[2];
        if (way() == WAY_STAGED) {
            stage(slab.weights[part], source, slot * nbytes, nbytes);
        } else {
            send(slab.weights[part], source, slot * nbytes, nbytes);
        }
        nbytes_ += nbytes;
    }
}

void uploader::wait() {
    synchronize();
    if (nbytes_ > 0) {
        choice_.took(nbytes_, (now_ns() - began_) / 1e9);
        nbytes_ = 0;
    }
}

void uploader::synchronize() {
    if (backend_ != nullptr) {
        ggml.ggml_backend_synchronize(backend_);
    }
}

void uploader::stage(ggml_tensor * to, const char * source, size_t offset, size_t nbytes) {
    char * base = static_cast<char *>(ggml.ggml_backend_buffer_get_base(pinned_));
    for (size_t done = 0; done < nbytes; done += PINNED_HALF) {
        const size_t n    = std::min(PINNED_HALF, nbytes - done);
        char *       half = base + half_ * PINNED_HALF;
        memcpy(half, source + done, n);
        synchronize();  // the other half is free again
        ggml.ggml_backend_tensor_set_async(backend_, to, half, offset + done, n);
        half_ = 1 - half_;
    }
}

// The model's weights outlive wait().
void uploader::send(ggml_tensor * to, const char * source, size_t offset, size_t nbytes) {
    for (size_t done = 0; done < nbytes; done += DIRECT_PIECE) {
        const size_t n = std::min(DIRECT_PIECE, nbytes - done);
        if (backend_ != nullptr) {
            ggml.ggml_backend_tensor_set_async(backend_, to, source + done, offset + done, n);
        } else {
            ggml.ggml_backend_tensor_set(to, source + done, offset + done, n);
        }
    }
}

}  // namespace hot
