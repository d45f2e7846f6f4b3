#include "hot/waves.h"

#include "hot/clock.h"

#include <algorithm>

namespace hot {

static constexpr size_t WAVE_NBYTES = size_t(32) << 20;  // copies of this size reach a bus's full speed
static constexpr size_t MAX_WAVE    = 8;

size_t expert_stream::wave_size(const moe_layer & layer) {
    const size_t fitting = std::max<size_t>(1, WAVE_NBYTES / layer.expert_nbytes());
    return std::min({ fitting, MAX_WAVE, size_t(layer.n_experts) });
}

bool expert_stream::prepare(const moe_layer & layer, int shape) {
    std::unique_ptr<two_slabs> & slabs = slabs_[shape];
    if (slabs != nullptr) {
        return true;
    }
    auto made = std::make_unique<two_slabs>();
    for (expert_slab & slab : made->slab) {
        if (!slab.allocate(device_, layer.host, wave_size(layer)).empty()) {
            return false;
        }
    }
    slabs = std::move(made);
    return true;
}

bool expert_stream::upload(const moe_layer & layer, const expert_slab & slab, const std::vector<expert_load> & streamed,
                           const stream_wave & wave, hot_model & model) {
    const auto   never    = [] { return false; };
    const size_t n_wanted = layer.tiered ? wave.n_experts : 0;
    size_t       n_taken  = 0;
    const auto   expert   = [&](size_t i) { return streamed[wave.first_expert + i].expert; };
    while (n_taken < n_wanted && model.tier->take_whole(layer.index, expert(n_taken), never)) {
        n_taken++;
    }
    const upload_times::mark busy(model.uploading);
    if (uploader_.way() == WAY_DIRECT) {
        model.counters.direct_nbytes += wave.n_experts * layer.expert_nbytes();
    }
    for (size_t slot = 0; slot < wave.n_experts && n_taken == n_wanted; slot++) {
        uploader_.copy(layer.host, slab, expert(slot), slot);
    }
    uploader_.wait();
    for (size_t i = 0; i < n_taken; i++) {
        model.tier->release(layer.index, expert(i));
    }
    return n_taken == n_wanted;
}

bool expert_stream::run(const moe_layer & layer, int shape, const std::vector<expert_load> & streamed,
                        const std::vector<stream_wave> & waves,
                        const std::function<bool(ggml_tensor * const weights[N_PARTS], const stream_wave & wave)> & start,
                        const std::function<void()> & finish, hot_model & model) {
    const size_t  expert_nbytes = layer.expert_nbytes();
    two_slabs &   slabs         = *slabs_.at(shape);
    const uint64_t began        = now_ns();
    if (!upload(layer, slabs.slab[0], streamed, waves[0], model)) {
        return false;
    }
    model.costs.uploaded(waves[0].n_experts * expert_nbytes, (now_ns() - began) / 1e9);

    for (size_t i = 0; i < waves.size(); i++) {
        finish();  // the wave before has the other slab, which is filled next
        const uint64_t started = now_ns();
        if (!start(slabs.slab[i % 2].weights, waves[i])) {
            return false;
        }
        if (i + 1 < waves.size()) {
            if (!upload(layer, slabs.slab[(i + 1) % 2], streamed, waves[i + 1], model)) {
                return false;
            }
            continue;
        }
        finish();
        const int64_t n_experts = int64_t(waves[i].n_experts);
        model.costs.computed_on_device(n_experts, waves[i].n_pairs, expert_nbytes, (now_ns() - started) / 1e9);
    }
    model.counters.streamed_experts += streamed.size();
    model.counters.streamed_nbytes += streamed.size() * expert_nbytes;
    return true;
}

}  // namespace hot
