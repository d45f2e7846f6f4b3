// Large batches: jobs for the device whose graphs aren't kept, and experts that are streamed to it.
#include "hot/context.h"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>

namespace hot {

// A second CPU backend has the memory and the cores of the first: it has no use for copies, and both at
// once would only fight.
static bool is_cpu(ggml_backend_device * device) {
    return ggml.ggml_backend_dev_type(device) == DEVICE_CPU;
}

// Device memory for the job with most pairs. One job computes at a time, and x lies where it lies for
// every number of pairs, so all jobs of a layer share it.
bool hot_context::reserve_bulk(const layer_run & run, int64_t n_pairs) {
    const chain  largest = build_chain(transient(), run.layer.host, run.n_tokens, n_pairs, 0);
    const size_t nbytes  = device_scratch_nbytes(largest, device_buft_);
    if (nbytes < device_bulk_refused_ && grow_device(device_bulk_, nbytes)) {
        return true;
    }
    device_bulk_refused_ = std::min(device_bulk_refused_, nbytes);
    run.model->say_once("prompts of this length run on the CPU: no device memory left to compute them in");
    return false;
}

chain hot_context::job_chain(const layer_run & run, ggml_tensor * const weights[N_PARTS], int64_t n_pairs, int which) {
    ggml_context *& ctx = job_ctx_[which];
    if (ctx == nullptr) {
        ctx = ggml.ggml_init({ chain_meta_nbytes(), nullptr, true });
    } else {
        ggml.ggml_reset(ctx);
    }
    chain built = build_chain(ctx, weights, run.n_tokens, n_pairs, 0);
    return place_on_device(built, device_bulk_) ? built : chain();
}

// Which of the cold experts the device computes too.
void hot_context::choose_streamed(const layer_run & run) {
    const moe_layer & layer = run.layer;
    by_expert_.assign(layer.n_experts, 0);
    for (int64_t i = 0; i < cold_.n; i++) {
        const int32_t expert = cold_.experts[i];
        if (expert < 0 || expert >= layer.n_experts) {
            return;  // ggml has something to say about that
        }
        by_expert_[expert]++;
    }
    for (int32_t expert = 0; expert < layer.n_experts; expert++) {
        if (by_expert_[expert] > 0) {
            cold_loads_.push_back({ expert, by_expert_[expert] });
        }
    }
    std::sort(cold_loads_.begin(), cold_loads_.end(), [](const expert_load & a, const expert_load & b) {
        return a.n_pairs != b.n_pairs ? a.n_pairs > b.n_pairs : a.expert < b.expert;
    });
    const bool always = run.model->streaming == STREAM_ALWAYS;
    size_t     n      = always ? cold_loads_.size() : 0;
    if (!always && !is_cpu(run.model->device)) {
        n = n_to_stream(run.model->costs, cold_loads_, hot_.n, layer.expert_nbytes());
    }
    streamed_.assign(cold_loads_.begin(), cold_loads_.begin() + n);
}

// Takes the streamed experts' pairs from the CPU's list and appends them to the device's, by waves.
void hot_context::move_streamed(const moe_layer & layer) {
    const size_t wave_size = expert_stream::wave_size(layer);
    waves_.clear();
    by_expert_.assign(layer.n_experts, -1);
    int64_t first_pair = hot_.n;
    for (size_t i = 0; i < streamed_.size(); i++) {
        if (i % wave_size == 0) {
            waves_.push_back({ i, 0, first_pair, 0 });
        }
        by_expert_[streamed_[i].expert] = int32_t(i);
        waves_.back().n_experts++;
        waves_.back().n_pairs += streamed_[i].n_pairs;
        first_pair += streamed_[i].n_pairs;
    }
    std::vector<int64_t> next;
    for (const stream_wave & wave : waves_) {
        next.push_back(wave.first_pair);
    }
    int64_t n_kept = 0;
    for (int64_t i = 0; i < cold_.n; i++) {
        const int32_t   number = by_expert_[cold_.experts[i]];
        pair_list &     to     = number >= 0 ? hot_ : cold_;
        const int64_t   at     = number >= 0 ? next[number / wave_size]++ : n_kept++;
        const int32_t   expert = number >= 0 ? int32_t(number % wave_size) : cold_.experts[i];
        to.tokens[at]  = cold_.tokens[i];
        to.experts[at] = expert;
        to.rows[at]    = cold_.rows[i];
    }
    hot_.n  = first_pair;
    cold_.n = n_kept;
    cold_loads_.erase(cold_loads_.begin(), cold_loads_.begin() + streamed_.size());
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
    bool done  = n_resident_pairs == 0 || compute_job(run, run.layer.slab.weights, 0, n_resident_pairs, which);
    done       = done && stream_->run(
        run.layer, class_of_[run.layer.index], streamed_, waves_,
        [&](ggml_tensor * const weights[N_PARTS], const stream_wave & wave) {
            which = 1 - which;
            return compute_job(run, weights, wave.first_pair, wave.n_pairs, which);
        },
        [&] { ggml.ggml_backend_synchronize(device_); }, *run.model);
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
    if (transient() == nullptr || !stream_->prepare(run.layer, class_of_[run.layer.index])) {
        model.streaming = STREAM_NEVER;
        model.say_once("long prompts don't use the device for more than hot experts: no device memory left");
        streamed_.clear();
        return n_resident_pairs > 0 ? run_divided(run) : on_the_cpu(run);
    }
    move_streamed(run.layer);
    int64_t most = n_resident_pairs;
    for (const stream_wave & wave : waves_) {
        most = std::max(most, wave.n_pairs);
    }
    chain cold;
    if (!reserve_bulk(run, most) || !stage(run)) {
        return on_the_cpu(run);
    }
    if (cold_.n > 0) {
        transient();
        cold = host_chain(run.layer, run.n_tokens, run.n_used);
        if (cold.graph == nullptr) {
            return on_the_cpu(run);
        }
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
    int            status    = cold_.n > 0 && (at_once || done) ? run_cold(cold, run) : STATUS_SUCCESS;
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
