#include "hot/slab.h"

#include <algorithm>
#include <cstring>

namespace hot {

static constexpr size_t PINNED_HALF = size_t(4) << 20;

// Asks the device about every operation of a chain, with the weights as they lie there.
static std::string unsupported(ggml_backend_device * device, ggml_tensor * const weights[N_PARTS]) {
    const int64_t  n_embd = weights[PART_UP]->ne[0];
    ggml_context * ctx    = ggml.ggml_init({ 16 * ggml.ggml_tensor_overhead(), nullptr, true });
    if (ctx == nullptr) {
        return "no memory for a ggml context";
    }
    ggml_tensor * x    = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, n_embd, 4);
    ggml_tensor * rows = ggml.ggml_new_tensor_1d(ctx, TYPE_I32, 4);
    ggml_tensor * ids  = ggml.ggml_new_tensor_2d(ctx, TYPE_I32, 1, 4);
    ggml_tensor * xg   = ggml.ggml_get_rows(ctx, x, rows);
    ggml_tensor * x3   = ggml.ggml_reshape_3d(ctx, xg, n_embd, 1, 4);
    ggml_tensor * up   = ggml.ggml_mul_mat_id(ctx, weights[PART_UP], x3, ids);
    ggml_tensor * gate = ggml.ggml_mul_mat_id(ctx, weights[PART_GATE], x3, ids);
    ggml_tensor * glu  = ggml.ggml_swiglu_split(ctx, gate, up);
    ggml_tensor * down = ggml.ggml_mul_mat_id(ctx, weights[PART_DOWN], glu, ids);

    std::string reason;
    for (const ggml_tensor * op : { xg, up, gate, glu, down }) {
        if (!ggml.ggml_backend_dev_supports_op(device, op)) {
            reason = std::string("this device has no ") + ggml.ggml_op_name(op->op) + " for " + ggml.ggml_type_name(op->src[0]->type);
            break;
        }
    }
    ggml.ggml_free(ctx);
    return reason;
}

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
    if (ctx_ != nullptr) {
        ggml.ggml_free(ctx_);
        ctx_ = nullptr;
    }
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

    ctx_ = ggml.ggml_init({ N_PARTS * ggml.ggml_tensor_overhead(), nullptr, true });
    if (ctx_ == nullptr) {
        return "no memory for a ggml context";
    }
    for (int part = 0; part < N_PARTS; part++) {
        ggml_tensor * tensor = ggml.ggml_new_tensor_3d(ctx_, host[part]->type, host[part]->ne[0], host[part]->ne[1], n_slots);
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
