#include "hot/slab.h"

namespace hot {

expert_slab::~expert_slab() {
    clear();
}

void expert_slab::clear() {
    for (int part = 0; part < N_PARTS; part++) {
        if (buffers_[part] != nullptr) {
            ggml.ggml_backend_buffer_free(buffers_[part]);
        }
        buffers_[part] = nullptr;
        weights[part]  = nullptr;
    }
    ctx_.reset();
}

std::string expert_slab::allocate(ggml_backend_device * device, ggml_tensor * const host[N_PARTS], int64_t n_slots) {
    clear();
    std::string reason = take_memory(device, host, n_slots);
    if (reason.empty()) {
        reason = unsupported(device, weights);
    }
    if (!reason.empty()) {
        clear();
    }
    return reason;
}

std::string expert_slab::take_memory(ggml_backend_device * device, ggml_tensor * const host[N_PARTS], int64_t n_slots) {
    ggml_backend_buffer_type * buft = ggml.ggml_backend_dev_buffer_type(device);

    ctx_ = new_context(N_PARTS * ggml.ggml_tensor_overhead());
    if (ctx_ == nullptr) {
        return "no memory for a ggml context";
    }
    for (int part = 0; part < N_PARTS; part++) {
        ggml_tensor * tensor = ggml.ggml_new_tensor_3d(ctx_.get(), host[part]->type, host[part]->ne[0], host[part]->ne[1], n_slots);
        const size_t  nbytes = ggml.ggml_backend_buft_get_alloc_size(buft, tensor);
        if (nbytes > ggml.ggml_backend_buft_get_max_size(buft)) {
            return "a buffer of this device can't hold " + std::to_string(nbytes) + " bytes";
        }
        ggml_backend_buffer * buffer = ggml.ggml_backend_buft_alloc_buffer(buft, nbytes);
        if (buffer == nullptr) {
            return "no device memory for " + std::to_string(nbytes) + " bytes";
        }
        buffers_[part] = buffer;
        ggml.ggml_backend_buffer_set_usage(buffer, USAGE_WEIGHTS);
        // Some kernels read a little past an expert's end: that must never be a NaN.
        ggml.ggml_backend_buffer_clear(buffer, 0);
        if (ggml.ggml_backend_tensor_alloc(buffer, tensor, ggml.ggml_backend_buffer_get_base(buffer)) != STATUS_SUCCESS) {
            return "the device refused the tensor";
        }
        weights[part] = tensor;
    }
    return "";
}

}  // namespace hot
