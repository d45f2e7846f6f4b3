// How often each expert is used: counted as tokens are routed, and written down for those who ask.
#include "hot/model.h"

#include <cerrno>
#include <cstring>

namespace hot {

void hot_model::count(moe_layer & layer, const ggml_tensor * ids) {
    const int64_t n_used   = ids->ne[0];
    const int64_t n_tokens = ids->ne[1];
    if (n_used >= layer.n_experts || trial != TRIAL_NONE) {
        return;  // llama.cpp's warm-up runs every expert: that says nothing about heat
    }
    if (layer.tiered) {
        tier->begin_layer(layer.index, n_tokens);
    }
    std::atomic<uint64_t> * heat = n_tokens <= DECODE_TOKENS ? layer.decode_heat.get() : layer.prefill_heat.get();
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t u = 0; u < n_used; u++) {
            const int32_t id = expert_at(ids, u, t);
            if (id >= 0 && id < layer.n_experts) {
                heat[id].fetch_add(1, std::memory_order_relaxed);
                if (layer.tiered) {
                    tier->use(layer.index, id, t, n_tokens);
                }
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
