// What a model consists of, and what it has to say.
#include "hot/model.h"

#include <algorithm>

namespace hot {

static constexpr int MAX_LAYERS = 4096;

hot_model::~hot_model() {
    if (trace_ != nullptr) {
        fclose(trace_);
    }
}

moe_layer & hot_model::layer_to_fill(int index) {
    std::lock_guard<std::mutex> lock(registering_);
    if (layers_.size() <= size_t(index)) {
        layers_.resize(index + 1);
    }
    if (layers_[index] == nullptr) {
        layers_[index]        = std::make_unique<moe_layer>();
        layers_[index]->index = index;
    }
    return *layers_[index];
}

// No tensor of a GGUF is called so.
static constexpr char HIDDEN = '\x01';

void hot_model::spread(ggml_tensor * tensor, expert_part part, int index) {
    const tier_part * placed = tier->part(index, part);
    if (placed == nullptr || placed->nbytes != part_nbytes(tensor)) {
        return;
    }
    tensor->data    = tier->place(index, part, static_cast<char *>(tensor->data));
    tensor->nb[2]   = placed->stride;
    tensor->nb[3]   = placed->stride * size_t(tensor->ne[2]);
    tensor->name[0] = HIDDEN;
}

void hot_model::loaded() {
    for (moe_layer * layer : layers()) {
        for (ggml_tensor * tensor : layer->host) {
            if (tensor->name[0] == HIDDEN) {
                tensor->name[0] = 'b';  // of blk.N.
            }
        }
    }
}

moe_layer * hot_model::add_tensor(ggml_tensor * tensor, expert_part part, int index) {
    if (index < 0 || index >= MAX_LAYERS) {
        return nullptr;
    }
    moe_layer &                         layer = layer_to_fill(index);
    std::unique_lock<std::shared_mutex> lock(layer.residency);
    if (layer.host[part] != nullptr) {
        return nullptr;
    }
    layer.host[part] = tensor;
    if (layer.complete()) {
        layer.begin();
        layer.tiered = tier != nullptr && tier->holds(index);
        layer.ready  = true;
    }
    return &layer;
}

// Waits for an upload that reads it.
void hot_model::forget_tensor(moe_layer & layer, expert_part part) {
    std::lock_guard<std::mutex>         one(uploading_);
    std::unique_lock<std::shared_mutex> lock(layer.residency);
    layer.ready      = false;
    layer.host[part] = nullptr;
    layer.drop_slots();
}

moe_layer * hot_model::layer(int index) const {
    std::lock_guard<std::mutex> lock(registering_);
    return index >= 0 && size_t(index) < layers_.size() ? layers_[index].get() : nullptr;
}

std::vector<moe_layer *> hot_model::layers() const {
    std::lock_guard<std::mutex> lock(registering_);
    std::vector<moe_layer *>    found;
    for (const auto & layer : layers_) {
        if (layer != nullptr && layer->ready) {
            found.push_back(layer.get());
        }
    }
    return found;
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

void hot_model::failed(const std::string & reason) {
    std::lock_guard<std::mutex> lock(talking_);
    failure_ = reason;
}

std::string hot_model::take_failure() {
    std::lock_guard<std::mutex> lock(talking_);
    std::string                 text;
    text.swap(failure_);
    return text;
}

std::string hot_model::take_messages() {
    std::lock_guard<std::mutex> lock(talking_);
    std::string                 text;
    for (; n_taken_ < messages_.size(); n_taken_++) {
        text += messages_[n_taken_] + "\n";
    }
    return text;
}

}  // namespace hot
