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
        layer.ready = true;
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

std::string hot_model::take_messages() {
    std::lock_guard<std::mutex> lock(talking_);
    std::string                 text;
    for (; n_taken_ < messages_.size(); n_taken_++) {
        text += messages_[n_taken_] + "\n";
    }
    return text;
}

}  // namespace hot
