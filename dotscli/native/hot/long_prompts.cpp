// Long prompts: which cold experts are streamed to the device, and how it computes them beside the CPU.
#include "hot/clock.h"
#include "hot/context.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>

namespace hot {

// A second CPU backend has the memory and the cores of the first: it has no use for copies, and both at
// once would only fight.
static bool is_cpu(ggml_backend_device * device) {
    return ggml.ggml_backend_dev_type(device) == DEVICE_CPU;
}

// Which of the cold experts the device computes too.
void hot_context::choose_streamed(const layer_run & run) {
    const moe_layer & layer = run.layer;
    if (!loads_of(cold_, layer.n_experts, by_expert_, cold_loads_)) {
        return;  // ggml has something to say about that
    }
    const bool always = run.model->streaming == STREAM_ALWAYS;
    size_t     n      = always ? cold_loads_.size() : 0;
    if (!always && !is_cpu(run.model->device)) {
        n = n_to_stream(run.model->costs, cold_loads_, hot_.n, layer.expert_nbytes());
    }
    streamed_.assign(cold_loads_.begin(), cold_loads_.begin() + n);
}

// Begins to compute pairs of the device's list and to fetch their rows.
bool hot_context::compute_job(const layer_run & run, ggml_tensor * const weights[N_PARTS], int64_t first, int64_t n, int which) {
    chain built = job_chain(run, weights, n, which);
    if (built.graph == nullptr || !begin_on_device(built, run, first, n)) {
        return false;
    }
    ggml.ggml_backend_tensor_get_async(device_, built.down, run.staged_rows + first * run.row, 0, n * run.row);
    return true;
}

// All of the device's side: the residents' pairs, then the waves.
bool hot_context::compute_on_device(const layer_run & run, int64_t n_resident_pairs) {
    int  which = 0;
    bool done  = false;
    try {
        done = n_resident_pairs == 0 || compute_job(run, run.layer.slab.weights, 0, n_resident_pairs, which);
        done = done && stream_->run(
            run.layer, class_of_[run.layer.index], streamed_, waves_,
            [&](ggml_tensor * const weights[N_PARTS], const stream_wave & wave) {
                which = 1 - which;
                return compute_job(run, weights, wave.first_pair, wave.n_pairs, which);
            },
            [&] { ggml.ggml_backend_synchronize(device_); }, *run.model);
    } catch (const std::bad_alloc &) {
        done = false;  // this may be a thread of its own, which nobody catches for
    }
    ggml.ggml_backend_synchronize(device_);
    return done;
}

// Where the CPU's rows have been written over x already.
static void restore_x(const layer_run & run) {
    char * x = static_cast<char *>(run.x->data);
    for (int64_t t = 0; t < run.n_tokens && run.x_data != x; t++) {
        memcpy(x + t * run.x->nb[2], run.x_data + t * run.row, run.row);
    }
}

int hot_context::run_streamed(layer_run & run) {
    hot_model &   model            = *run.model;
    const int64_t n_resident_pairs = hot_.n;
    if (!stream_->prepare(run.layer, class_of_[run.layer.index])) {
        model.streaming = STREAM_NEVER;
        model.say_once("long prompts don't use the device for more than hot experts: no device memory left");
        streamed_.clear();
        return n_resident_pairs > 0 ? run_divided(run) : on_the_cpu(run);
    }
    move_streamed(streamed_, run.layer.n_experts, expert_stream::wave_size(run.layer), by_expert_, hot_, cold_, waves_);
    cold_loads_.erase(cold_loads_.begin(), cold_loads_.begin() + streamed_.size());
    int64_t most = n_resident_pairs;
    for (const stream_wave & wave : waves_) {
        most = std::max(most, wave.n_pairs);
    }
    chain      cold;
    const bool tiered = run.layer.tiered && cold_.n > 0;
    if (!reserve_bulk(run, most)) {
        return on_the_cpu(run);
    }
    if (cold_.n > 0 && !tiered) {
        cold = host_chain(run.layer, run.n_tokens, run.n_used, cold_.n);
    }
    if ((cold_.n > 0 && !tiered && cold.graph == nullptr) || !stage(run)) {
        return without_memory(run);
    }
    if (tiered && !begin_tiered(run)) {
        return STATUS_FAILED;
    }
    const uint64_t issued = now_ns();

    // Uploading keeps a thread busy.
    bool        done = false;
    std::thread driver;
    if (cold_.n > 0 && !is_cpu(model.device)) {
        try {
            driver = std::thread([&] { done = compute_on_device(run, n_resident_pairs); });
        } catch (const std::system_error &) {
            // no thread to be had: one side after the other
        }
    }
    const bool at_once = driver.joinable();
    if (!at_once) {
        done = compute_on_device(run, n_resident_pairs);
    }
    const uint64_t cpu_began = at_once ? issued : now_ns();
    int            status    = STATUS_SUCCESS;
    if (cold_.n > 0 && (at_once || done)) {
        status = tiered ? compute_tiered(run) : run_cold(cold, run);
    }
    end_tiered(run);
    const uint64_t computed  = now_ns();
    if (at_once) {
        driver.join();
    }
    if (!done) {
        model.streaming = STREAM_NEVER;
        model.say_once("long prompts don't use the device for more than hot experts: it failed to compute");
        restore_x(run);
        return on_the_cpu(run);
    }
    const uint64_t collected = now_ns();
    if (status == STATUS_SUCCESS) {
        status = scatter(run);
    }
    count(run, n_resident_pairs, cpu_began, computed, collected);
    return status;
}

}  // namespace hot
