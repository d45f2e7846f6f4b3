#include "hot/model.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace hot {

static constexpr int64_t MAX_EXPERTS = INT16_MAX;  // a trace writes ids as 16 bits
static constexpr int     MAX_LAYERS  = 4096;

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
    found->slab.clear();
    found->expert_in.clear();
    std::fill(found->slot_of.begin(), found->slot_of.end(), -1);
    found->n_resident = 0;
    if (n_slots == 0) {
        return "";
    }
    const std::string reason = found->slab.allocate(device, found->host, n_slots);
    if (!reason.empty()) {
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
    if (uploader_ == nullptr) {
        uploader_ = std::make_unique<uploader>(device);
    }
    uploader_->copy(found->host, found->slab, expert, slot);
    uploader_->wait();
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
