// Which experts of a layer are on the device: room for them, and one in another's place.
#include "hot/clock.h"
#include "hot/model.h"

namespace hot {

static constexpr uint64_t BURST_NS = 100'000'000;

bool upload_times::go_on() const {
    return n_ > 0 || now_ns() - ended_ < BURST_NS;
}

upload_times::mark::~mark() {
    times_.ended_ = now_ns();
    times_.n_--;
}

static std::string no_experts(int index) {
    return "layer " + std::to_string(index) + " has no routed experts here";
}

// Its experts are needed in main memory again.
void hot_model::leave_device(const moe_layer & layer) {
    for (int32_t expert : layer.expert_in) {
        if (layer.tiered && expert >= 0) {
            tier->set_on_device(layer.index, expert, false);
        }
    }
}

std::string hot_model::reserve(int index, int n_slots) {
    moe_layer * found = layer(index);
    if (found == nullptr) {
        return no_experts(index);
    }
    std::lock_guard<std::mutex> one(uploading_);
    if (!found->ready) {
        return no_experts(index);
    }
    if (device == nullptr) {
        return "this model has no hot device";
    }
    if (n_slots < 0 || n_slots > found->n_experts) {
        return std::to_string(n_slots) + " slots for " + std::to_string(found->n_experts) + " experts";
    }
    std::unique_lock<std::shared_mutex> lock(found->residency);
    leave_device(*found);
    found->drop_slots();
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

// The model's tensors can't go meanwhile: forget_tensor() waits for `uploading_`.
std::string hot_model::place(int index, int slot, int expert) {
    moe_layer * found = layer(index);
    if (found == nullptr) {
        return no_experts(index);
    }
    std::lock_guard<std::mutex> one(uploading_);
    if (!found->ready) {
        return no_experts(index);
    }
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
            if (found->tiered) {
                tier->set_on_device(index, before, false);
            }
        }
    }
    if (expert < 0) {
        return "";
    }
    if (found->tiered && !tier->take_whole(index, expert, [] { return false; })) {
        return "expert " + std::to_string(expert) + " can't be read: " + tier->take_problem();
    }
    if (uploader_ == nullptr) {
        uploader_ = std::make_unique<uploader>(device);
    }
    const bool direct = uploader_->way() == WAY_DIRECT;
    {
        const upload_times::mark busy(uploading);
        uploader_->copy(found->host, found->slab, expert, slot);
        uploader_->wait();
    }
    if (found->tiered) {
        tier->set_on_device(index, expert, true);
        tier->release(index, expert);
    }
    {
        std::unique_lock<std::shared_mutex> lock(found->residency);
        found->slot_of[expert] = slot;
        found->expert_in[slot] = expert;
        found->n_resident++;
    }
    counters.uploads++;
    counters.uploaded_nbytes += found->expert_nbytes();
    counters.direct_nbytes += direct ? found->expert_nbytes() : 0;
    return "";
}

}  // namespace hot
