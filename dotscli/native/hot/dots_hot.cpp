#include "hot/dots_hot.h"

#include "hot/buffer.h"
#include "hot/process.h"

#include <algorithm>
#include <new>

using namespace hot;

// What `call` has to say, kept for the caller. Nothing may be thrown through C.
template <class Call> static const char * said(const Call & call) {
    static thread_local std::string kept;
    try {
        kept = call();
    } catch (const std::bad_alloc &) {
        return "out of memory";
    }
    return kept.empty() ? nullptr : kept.c_str();
}

static std::shared_ptr<hot_model> model_of(int32_t number) {
    std::lock_guard<std::mutex> lock(state().mutex);
    const auto                  found = state().models.find(number);
    return found != state().models.end() ? found->second : nullptr;
}

static std::string start(void * libllama) {
    process_state &             s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (!s.started) {
        s.started       = true;
        s.start_problem = ggml.load(libllama);
        if (s.start_problem.empty()) {
            ggml.ggml_backend_register(&hot_reg);
        }
    }
    return s.start_problem;
}

const char * dots_hot_start(void * libllama) {
    return said([&] { return start(libllama); });
}

void * dots_hot_buffer_type(void) {
    return &hot_buft;
}

void dots_hot_set_threadpool(void * threadpool) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().threadpool = static_cast<ggml_threadpool *>(threadpool);
}

static std::string open(const char * device, int32_t & number) {
    process_state &             s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (!s.started || !s.start_problem.empty()) {
        return "the backend isn't registered";
    }
    ggml_backend_device * found = nullptr;
    if (device != nullptr) {
        found = ggml.ggml_backend_dev_by_name(device);
        if (found == nullptr || found == &hot_device) {
            return std::string("there is no device ") + device;
        }
    }
    if (s.opened != nullptr) {
        return "another model is being loaded";
    }
    const auto model = std::make_shared<hot_model>();
    model->device    = found;
    s.models[s.last + 1] = model;
    s.opened             = model;
    number               = ++s.last;
    return "";
}

int32_t dots_hot_open(const char * device, const char ** problem) {
    int32_t number = 0;
    *problem       = said([&] { return open(device, number); });
    return number;
}

static std::string begin_tier(hot_model & model, const char * const * files, int32_t n_files, double half_life,
                              double patience_s) {
    const bool possible = half_life >= 1 && half_life <= 1e9 && patience_s >= 0 && patience_s <= 1e6;
    if (model.tier != nullptr || n_files < 1 || !possible) {
        return "no such tier";
    }
    auto tier = std::make_unique<ram_tier>(half_life, patience_s);
    for (int32_t i = 0; i < n_files; i++) {
        const std::string problem = tier->add_file(files[i]);
        if (!problem.empty()) {
            return problem;
        }
    }
    std::lock_guard<std::mutex> lock(state().mutex);  // buffers are made with it held
    model.tier = std::move(tier);
    return "";
}

const char * dots_hot_tier(int32_t model, const char * const * files, int32_t n_files, double half_life, double patience_s) {
    const auto found = model_of(model);
    return said([&]() -> std::string {
        return found != nullptr ? begin_tier(*found, files, n_files, half_life, patience_s) : "this model is closed";
    });
}

const char * dots_hot_tier_part(int32_t model, int32_t layer, int32_t part, int32_t file, uint64_t offset, uint64_t expert_nbytes,
                                int32_t n_experts) {
    const auto found = model_of(model);
    return said([&]() -> std::string {
        if (found == nullptr || found->tier == nullptr) {
            return "this model has no tier";
        }
        return found->tier->add_part(layer, expert_part(part), file, offset, expert_nbytes, n_experts);
    });
}

void dots_hot_loaded(int32_t model) {
    const auto found = model_of(model);
    if (found == nullptr) {
        return;
    }
    {
        std::lock_guard<std::mutex> lock(state().mutex);
        if (state().opened == found) {
            state().opened = nullptr;
        }
    }
    said([&]() -> std::string {
        found->loaded();
        return "";
    });
}

void dots_hot_close(int32_t model) {
    dots_hot_loaded(model);
    std::shared_ptr<hot_model>  last_use = model_of(model);  // freed after the lock is
    std::lock_guard<std::mutex> lock(state().mutex);
    state().models.erase(model);
}

static std::vector<moe_layer *> layers_of(const hot_model & model) {
    try {
        return model.layers();
    } catch (const std::bad_alloc &) {
        return {};
    }
}

int32_t dots_hot_layers(int32_t model, dots_hot_layer * layers, int32_t n_max) {
    const auto found = model_of(model);
    if (found == nullptr) {
        return 0;
    }
    const std::vector<moe_layer *> all = layers_of(*found);
    for (int32_t i = 0; i < n_max && size_t(i) < all.size(); i++) {
        std::shared_lock<std::shared_mutex> lock(all[i]->residency);
        layers[i] = {
            all[i]->index,        int32_t(all[i]->n_experts), int32_t(all[i]->expert_in.size()), all[i]->n_resident,
            all[i]->expert_nbytes(), all[i]->off,                all[i]->tiered,
        };
    }
    return int32_t(all.size());
}

const char * dots_hot_reserve(int32_t model, int32_t layer, int32_t n_slots) {
    const auto found = model_of(model);
    return said([&]() -> std::string { return found != nullptr ? found->reserve(layer, n_slots) : "this model is closed"; });
}

const char * dots_hot_place(int32_t model, int32_t layer, int32_t slot, int32_t expert) {
    const auto found = model_of(model);
    return said([&]() -> std::string { return found != nullptr ? found->place(layer, slot, expert) : "this model is closed"; });
}

int32_t dots_hot_residents(int32_t model, int32_t layer, int32_t * expert_in, int32_t n_max) {
    const auto  found = model_of(model);
    moe_layer * which = found != nullptr ? found->layer(layer) : nullptr;
    if (which == nullptr) {
        return 0;
    }
    std::shared_lock<std::shared_mutex> lock(which->residency);
    const int32_t                       n_slots = int32_t(which->expert_in.size());
    std::copy_n(which->expert_in.begin(), std::min(n_slots, n_max), expert_in);
    return n_slots;
}

void dots_hot_set_trial(int32_t model, int32_t trial) {
    const auto found = model_of(model);
    if (found != nullptr) {
        found->trial = trial;
    }
}

void dots_hot_set_streaming(int32_t model, int32_t streaming) {
    const auto found = model_of(model);
    if (found != nullptr) {
        found->streaming = streaming;
    }
}

int32_t dots_hot_read_counters(int32_t model, dots_hot_counters * counters) {
    const auto found = model_of(model);
    if (found == nullptr) {
        return 0;
    }
    const hot_counters & from = found->counters;
    *counters = {
        from.decode_hits, from.decode_misses,   from.prefill_hits, from.prefill_misses, from.uploads,
        from.uploaded_nbytes, from.streamed_experts, from.streamed_nbytes, from.direct_nbytes, from.spared_layers, from.cpu_ns, from.device_ns, from.wait_ns,
    };
    return 1;
}

int32_t dots_hot_read_heat(int32_t model, int32_t layer, uint64_t * decode, uint64_t * prefill, int32_t n_max) {
    const auto  found = model_of(model);
    moe_layer * which = found != nullptr ? found->layer(layer) : nullptr;
    if (which == nullptr) {
        return 0;
    }
    std::shared_lock<std::shared_mutex> lock(which->residency);
    if (!which->ready) {
        return 0;
    }
    const int32_t n = int32_t(std::min<int64_t>(which->n_experts, n_max));
    for (int32_t e = 0; e < n; e++) {
        decode[e]  = which->decode_heat[e].load(std::memory_order_relaxed);
        prefill[e] = which->prefill_heat[e].load(std::memory_order_relaxed);
    }
    return int32_t(which->n_experts);
}

const char * dots_hot_trace(int32_t model, const char * path) {
    const auto found = model_of(model);
    return said([&]() -> std::string { return found != nullptr ? found->trace_to(path) : "this model is closed"; });
}

const char * dots_hot_messages(int32_t model) {
    const auto found = model_of(model);
    return said([&]() -> std::string { return found != nullptr ? found->take_messages() : ""; });
}

void dots_hot_set_ram(int32_t model, uint64_t nbytes) {
    const auto found = model_of(model);
    if (found != nullptr && found->tier != nullptr) {
        found->tier->set_budget(size_t(nbytes));
    }
}

void dots_hot_set_heat(int32_t model, int32_t layer, const double * heat, int32_t n) {
    const auto found = model_of(model);
    for (int32_t expert = 0; found != nullptr && found->tier != nullptr && expert < n; expert++) {
        found->tier->set_heat(layer, expert, heat[expert]);
    }
}

void dots_hot_warm(int32_t model, const int32_t * experts, int32_t n) {
    const auto found = model_of(model);
    said([&]() -> std::string {
        if (found != nullptr && found->tier != nullptr && n > 0) {
            std::vector<std::pair<int32_t, int32_t>> list;
            for (int32_t i = 0; i < n; i++) {
                list.push_back({ experts[2 * i], experts[2 * i + 1] });
            }
            found->tier->warm(std::move(list));
        }
        return "";
    });
}

int32_t dots_hot_read_ram(int32_t model, dots_hot_ram * ram) {
    const auto found = model_of(model);
    if (found == nullptr || found->tier == nullptr) {
        return 0;
    }
    const ram_tier &     tier = *found->tier;
    const ram_counters & from = tier.counters;
    *ram = {
        from.decode_hits, from.decode_misses, from.prefill_hits, from.prefill_misses, from.read_experts,
        from.reread_experts, from.read_nbytes, from.ahead_nbytes, from.wait_ns, tier.resident_nbytes(),
        uint64_t(tier.n_resident()), tier.direct(),
    };
    return 1;
}

const char * dots_hot_failure(int32_t model) {
    const auto found = model_of(model);
    return said([&]() -> std::string { return found != nullptr ? found->take_failure() : ""; });
}
