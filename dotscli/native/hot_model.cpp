#include "hot_model.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace hot {

static constexpr int64_t MAX_EXPERTS = INT16_MAX;  // a trace writes ids as 16 bits
static constexpr int     MAX_LAYERS  = 4096;
static constexpr size_t  PINNED_HALF = size_t(4) << 20;

bool moe_layer::complete() const {
    const ggml_tensor * up   = host[PART_UP];
    const ggml_tensor * gate = host[PART_GATE];
    const ggml_tensor * down = host[PART_DOWN];
    if (up == nullptr || gate == nullptr || down == nullptr) {
        return false;
    }
    for (const ggml_tensor * tensor : host) {
        if (tensor->ne[2] != up->ne[2] || tensor->ne[3] != 1 || tensor->data == nullptr || !ggml.ggml_is_contiguous(tensor)) {
            return false;
        }
    }
    return up->ne[2] >= 1 && up->ne[2] <= MAX_EXPERTS && gate->ne[0] == up->ne[0] && gate->ne[1] == up->ne[1] &&
        down->ne[0] == up->ne[1] && down->ne[1] == up->ne[0];
}

size_t moe_layer::expert_nbytes() const {
    size_t nbytes = 0;
    for (const ggml_tensor * tensor : host) {
        nbytes += tensor != nullptr ? tensor->nb[2] : 0;
    }
    return nbytes;
}

hot_model::~hot_model() {
    for (auto & layer : layers_) {
        if (layer != nullptr) {
            free_slabs(*layer);
        }
    }
    if (pinned_ != nullptr) {
        ggml.ggml_backend_buffer_free(pinned_);
    }
    if (uploader_ != nullptr) {
        ggml.ggml_backend_free(uploader_);
    }
    if (trace_ != nullptr) {
        fclose(trace_);
    }
}

moe_layer * hot_model::add_tensor(ggml_tensor * tensor, expert_part part, int index) {
    if (index < 0 || index >= MAX_LAYERS) {
        return nullptr;
    }
    if (layers_.size() <= size_t(index)) {
        layers_.resize(index + 1);
    }
    if (layers_[index] == nullptr) {
        layers_[index] = std::make_unique<moe_layer>();
    }
    moe_layer & layer = *layers_[index];
    layer.index       = index;
    layer.host[part]  = tensor;
    layer.ready       = layer.complete();
    if (layer.ready) {
        layer.n_embd    = layer.host[PART_UP]->ne[0];
        layer.n_ff      = layer.host[PART_UP]->ne[1];
        layer.n_experts = layer.host[PART_UP]->ne[2];
        layer.slot_of.assign(layer.n_experts, -1);
        layer.decode_heat  = std::make_unique<std::atomic<uint64_t>[]>(layer.n_experts);
        layer.prefill_heat = std::make_unique<std::atomic<uint64_t>[]>(layer.n_experts);
        for (int64_t e = 0; e < layer.n_experts; e++) {
            layer.decode_heat[e]  = 0;
            layer.prefill_heat[e] = 0;
        }
    }
    return &layer;
}

moe_layer * hot_model::layer(int index) const {
    return index >= 0 && size_t(index) < layers_.size() ? layers_[index].get() : nullptr;
}

std::vector<moe_layer *> hot_model::layers() const {
    std::vector<moe_layer *> found;
    for (const auto & layer : layers_) {
        if (layer != nullptr && layer->ready) {
            found.push_back(layer.get());
        }
    }
    return found;
}

void hot_model::free_slabs(moe_layer & layer) {
    for (int part = 0; part < N_PARTS; part++) {
        if (layer.slab_buffer[part] != nullptr) {
            ggml.ggml_backend_buffer_free(layer.slab_buffer[part]);
        }
        layer.slab_buffer[part] = nullptr;
        layer.slab[part]        = nullptr;
    }
    if (layer.slab_ctx != nullptr) {
        ggml.ggml_free(layer.slab_ctx);
        layer.slab_ctx = nullptr;
    }
    layer.expert_in.clear();
    std::fill(layer.slot_of.begin(), layer.slot_of.end(), -1);
    layer.n_resident = 0;
}

std::string hot_model::allocate_slabs(moe_layer & layer, int n_slots) {
    ggml_backend_buffer_type * buft = ggml.ggml_backend_dev_buffer_type(device);

    layer.slab_ctx = ggml.ggml_init({ N_PARTS * ggml.ggml_tensor_overhead(), nullptr, true });
    if (layer.slab_ctx == nullptr) {
        return "no memory for a ggml context";
    }
    for (int part = 0; part < N_PARTS; part++) {
        const ggml_tensor * host = layer.host[part];
        ggml_tensor *       slab = ggml.ggml_new_tensor_3d(layer.slab_ctx, host->type, host->ne[0], host->ne[1], n_slots);

        const size_t nbytes = ggml.ggml_backend_buft_get_alloc_size(buft, slab);
        if (nbytes > ggml.ggml_backend_buft_get_max_size(buft)) {
            return "a buffer of this device can't hold " + std::to_string(nbytes) + " bytes";
        }
        ggml_backend_buffer * buffer = ggml.ggml_backend_buft_alloc_buffer(buft, nbytes);
        if (buffer == nullptr) {
            return "no device memory for " + std::to_string(nbytes) + " bytes";
        }
        layer.slab_buffer[part] = buffer;
        ggml.ggml_backend_buffer_set_usage(buffer, USAGE_WEIGHTS);
        // Some kernels read a little past an expert's end: that must never be a NaN.
        ggml.ggml_backend_buffer_clear(buffer, 0);
        if (ggml.ggml_backend_tensor_alloc(buffer, slab, ggml.ggml_backend_buffer_get_base(buffer)) != STATUS_SUCCESS) {
            return "the device refused the tensor";
        }
        layer.slab[part] = slab;
    }
    return unsupported(layer);
}

// Asks the device about every operation of a chain, with the weights as they lie there.
std::string hot_model::unsupported(moe_layer & layer) const {
    ggml_context * ctx = ggml.ggml_init({ 16 * ggml.ggml_tensor_overhead(), nullptr, true });
    if (ctx == nullptr) {
        return "no memory for a ggml context";
    }
    ggml_tensor * x    = ggml.ggml_new_tensor_2d(ctx, TYPE_F32, layer.n_embd, 4);
    ggml_tensor * rows = ggml.ggml_new_tensor_1d(ctx, TYPE_I32, 4);
    ggml_tensor * ids  = ggml.ggml_new_tensor_2d(ctx, TYPE_I32, 1, 4);
    ggml_tensor * xg   = ggml.ggml_get_rows(ctx, x, rows);
    ggml_tensor * x3   = ggml.ggml_reshape_3d(ctx, xg, layer.n_embd, 1, 4);
    ggml_tensor * up   = ggml.ggml_mul_mat_id(ctx, layer.slab[PART_UP], x3, ids);
    ggml_tensor * gate = ggml.ggml_mul_mat_id(ctx, layer.slab[PART_GATE], x3, ids);
    ggml_tensor * glu  = ggml.ggml_swiglu_split(ctx, gate, up);
    ggml_tensor * down = ggml.ggml_mul_mat_id(ctx, layer.slab[PART_DOWN], glu, ids);

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

std::string hot_model::reserve(int index, int n_slots) {
    moe_layer * found = layer(index);
    if (found == nullptr || !found->ready) {
        return "layer " + std::to_string(index) + " has no routed experts here";
    }
    if (device == nullptr) {
        return "this model has no hot device";
    }
    if (n_slots < 0 || n_slots > found->n_experts) {
        return std::to_string(n_slots) + " slots for " + std::to_string(found->n_experts) + " experts";
    }
    std::lock_guard<std::mutex>         one(uploading_);
    std::unique_lock<std::shared_mutex> lock(found->residency);
    free_slabs(*found);
    if (n_slots == 0) {
        return "";
    }
    const std::string reason = allocate_slabs(*found, n_slots);
    if (!reason.empty()) {
        free_slabs(*found);
        return reason;
    }
    found->expert_in.assign(n_slots, -1);
    found->off = false;
    return "";
}

std::string hot_model::place(int index, int slot, int expert) {
    moe_layer * found = layer(index);
    if (found == nullptr || !found->ready) {
        return "layer " + std::to_string(index) + " has no routed experts here";
    }
    std::lock_guard<std::mutex> one(uploading_);
    {
        std::unique_lock<std::shared_mutex> lock(found->residency);
        if (slot < 0 || size_t(slot) >= found->expert_in.size()) {
            return "layer " + std::to_string(index) + " has no slot " + std::to_string(slot);
        }
        if (expert < -1 || expert >= found->n_experts) {
            return "layer " + std::to_string(index) + " has no expert " + std::to_string(expert);
        }
        const int before = found->expert_in[slot];
        if (before == expert) {
            return "";
        }
        if (expert >= 0 && found->slot_of[expert] >= 0) {
            return "expert " + std::to_string(expert) + " lies in slot " + std::to_string(found->slot_of[expert]) + " already";
        }
        // From here on the slot's old expert is computed on the CPU, and nobody reads the slot.
        if (before >= 0) {
            found->slot_of[before] = -1;
            found->expert_in[slot] = -1;
            found->n_resident--;
        }
    }
    if (expert < 0) {
        return "";
    }
    upload(*found, slot, expert);
    {
        std::unique_lock<std::shared_mutex> lock(found->residency);
        found->slot_of[expert] = slot;
        found->expert_in[slot] = expert;
        found->n_resident++;
    }
    counters.uploads++;
    counters.uploaded_nbytes += found->expert_nbytes();
    return "";
}

void hot_model::upload(moe_layer & layer, int slot, int expert) {
    if (uploader_ == nullptr) {
        uploader_ = ggml.ggml_backend_dev_init(device, nullptr);
        ggml_backend_buffer_type * buft = ggml.ggml_backend_dev_host_buffer_type(device);
        if (uploader_ != nullptr && buft != nullptr) {
            pinned_ = ggml.ggml_backend_buft_alloc_buffer(buft, 2 * PINNED_HALF);
        }
    }
    for (int part = 0; part < N_PARTS; part++) {
        const size_t nbytes = layer.host[part]->nb[2];
        const char * source = static_cast<const char *>(layer.host[part]->data) + size_t(expert) * nbytes;
        upload_part(layer.slab[part], source, size_t(slot) * nbytes, nbytes);
    }
    if (uploader_ != nullptr) {
        ggml.ggml_backend_synchronize(uploader_);
    }
}

// Through pinned memory where there is some: reading the file's pages overlaps with the transfer.
void hot_model::upload_part(ggml_tensor * slab, const char * source, size_t offset, size_t nbytes) {
    if (pinned_ == nullptr) {
        ggml.ggml_backend_tensor_set(slab, source, offset, nbytes);
        return;
    }
    char * base = static_cast<char *>(ggml.ggml_backend_buffer_get_base(pinned_));
    for (size_t done = 0, i = 0; done < nbytes; done += PINNED_HALF, i++) {
        const size_t n    = std::min(PINNED_HALF, nbytes - done);
        char *       half = base + (i % 2) * PINNED_HALF;
        if (done == 0) {
            ggml.ggml_backend_synchronize(uploader_);  // the part before may still use this half
        }
        memcpy(half, source + done, n);
        ggml.ggml_backend_synchronize(uploader_);
        ggml.ggml_backend_tensor_set_async(uploader_, slab, half, offset + done, n);
    }
}

void hot_model::switch_off(moe_layer & layer, const std::string & reason) {
    layer.off = true;
    say_once("layer " + std::to_string(layer.index) + " stays on the CPU: " + reason);
}

void hot_model::say_once(const std::string & sentence) {
    std::lock_guard<std::mutex> lock(talking_);
    if (std::find(messages_.begin(), messages_.end(), sentence) == messages_.end()) {
        messages_.push_back(sentence);
    }
}

std::string hot_model::take_messages() {
    std::lock_guard<std::mutex> lock(talking_);
    std::string                 text;
    for (; n_taken_ < messages_.size(); n_taken_++) {
        text += messages_[n_taken_] + "\n";
    }
    return text;
}

int32_t expert_at(const ggml_tensor * ids, int64_t used, int64_t token) {
    int32_t id;
    memcpy(&id, static_cast<const char *>(ids->data) + token * ids->nb[1] + used * ids->nb[0], sizeof id);
    return id;
}

void hot_model::count(moe_layer & layer, const ggml_tensor * ids) {
    const int64_t n_used   = ids->ne[0];
    const int64_t n_tokens = ids->ne[1];
    if (n_used >= layer.n_experts || trial != TRIAL_NONE) {
        return;  // llama.cpp's warm-up runs every expert: that says nothing about heat
    }
    std::atomic<uint64_t> * heat = n_tokens <= DECODE_TOKENS ? layer.decode_heat.get() : layer.prefill_heat.get();
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t u = 0; u < n_used; u++) {
            const int32_t id = expert_at(ids, u, t);
            if (id >= 0 && id < layer.n_experts) {
                heat[id].fetch_add(1, std::memory_order_relaxed);
            }
        }
    }
    if (!tracing_.load(std::memory_order_relaxed)) {
        return;
    }
    std::lock_guard<std::mutex> lock(talking_);
    if (trace_ == nullptr) {
        return;
    }
    // One record: u16 layer, u16 n_used, u32 n_tokens, then n_tokens * n_used ids of 16 bits.
    const uint16_t head[2] = { uint16_t(layer.index), uint16_t(n_used) };
    const uint32_t tokens  = uint32_t(n_tokens);
    bool           written = fwrite(head, sizeof head, 1, trace_) == 1 && fwrite(&tokens, sizeof tokens, 1, trace_) == 1;
    for (int64_t t = 0; t < n_tokens && written; t++) {
        for (int64_t u = 0; u < n_used && written; u++) {
            const uint16_t id = uint16_t(expert_at(ids, u, t));
            written           = fwrite(&id, sizeof id, 1, trace_) == 1;
        }
    }
    if (!written) {
        messages_.push_back(std::string("the trace ends early: ") + strerror(errno));
        fclose(trace_);
        trace_   = nullptr;
        tracing_ = false;
    }
}

std::string hot_model::trace_to(const char * path) {
    std::lock_guard<std::mutex> lock(talking_);
    tracing_ = false;
    if (trace_ != nullptr) {
        const bool whole = fclose(trace_) == 0;
        trace_           = nullptr;
        if (!whole) {
            return strerror(errno);
        }
    }
    if (path == nullptr) {
        return "";
    }
    trace_ = fopen(path, "wb");
    if (trace_ == nullptr) {
        return strerror(errno);
    }
    tracing_ = true;
    return "";
}

}  // namespace hot
