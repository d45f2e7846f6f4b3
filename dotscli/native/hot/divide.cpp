// One layer of one batch: the pairs divided, both sides begun, their rows put in place.
#include "hot/clock.h"
#include "hot/context.h"

namespace hot {

int hot_context::run(const std::shared_ptr<hot_model> & model, const layer_nodes & nodes, ggml_cgraph * graph) {
    moe_layer & layer = *nodes.layer;
    layer_run   run{ model, layer, graph, nodes.up->src[2], nodes.up->src[1], nodes.down };
    run.n_used   = run.ids->ne[0];
    run.n_tokens = run.ids->ne[1];
    run.n_pairs  = run.n_used * run.n_tokens;
    run.bulk     = !is_small(run.n_tokens, run.n_pairs);
    run.row      = layer.n_embd * sizeof(float);
    run.start    = now_ns();

    share_cores(run);
    const bool may_stream = run.bulk && model->device != nullptr && model->streaming != STREAM_NEVER;
    if (layer.off || model->trial == TRIAL_ON_CPU || (layer.n_resident == 0 && !may_stream)) {
        return on_the_cpu(run);
    }
    std::shared_lock<std::shared_mutex> lock(layer.residency);
    divide_by_residency(layer, run.ids, hot_, cold_);
    streamed_.clear();
    cold_loads_.clear();
    if (may_stream) {
        choose_streamed(run);
    }
    if (hot_.n == 0 && streamed_.empty()) {
        lock.unlock();
        const int status = on_the_cpu(run);
        model->costs.computed_on_cpu(cold_loads_.size(), run.n_pairs, layer.expert_nbytes(), (now_ns() - run.start) / 1e9);
        return status;
    }
    if (!bind(model)) {
        model->switch_off(layer, "the hot device can't be started");
        return on_the_cpu(run);
    }
    return streamed_.empty() ? run_divided(run) : run_streamed(run);
}

// The residents' pairs on the device, the others on the CPU.
int hot_context::run_divided(layer_run & run) {
    moe_layer &    layer = run.layer;
    hot_model &    model = *run.model;
    const uint64_t first = chain_key(layer, run.n_tokens, run.n_used, 1);

    // 1. Graphs for both sides, and memory to meet in.
    if (!run.bulk && device_chains_.find(first) == nullptr && !prepare_device(layer, run.n_tokens, run.n_used)) {
        model.switch_off(layer, "no device memory left to compute in");
        return on_the_cpu(run);
    }
    if (!run.bulk && host_chains_.find(first) == nullptr && !prepare_host(layer, run.n_tokens, run.n_used)) {
        return without_memory(run);
    }
    if (run.bulk && !reserve_bulk(run, hot_.n)) {
        return on_the_cpu(run);
    }
    chain hot;
    if (run.bulk) {
        hot = job_chain(run, layer.slab.weights, hot_.n, 0);
    } else {
        hot = *device_chains_.find(chain_key(layer, run.n_tokens, run.n_used, hot_.n));
        set_weights(hot, layer.slab.weights);
    }
    chain      cold;
    const bool tiered = layer.tiered && cold_.n > 0;
    if (cold_.n > 0 && !tiered) {
        cold = host_chain(layer, run.n_tokens, run.n_used, cold_.n);
    }
    if (hot.graph == nullptr || (cold_.n > 0 && !tiered && cold.graph == nullptr) || !stage(run)) {
        return without_memory(run);
    }
    if (tiered && !begin_tiered(run)) {
        return STATUS_FAILED;
    }

    // 2. The device starts; where it computes asynchronously, the CPU goes on at once.
    if (!begin_on_device(hot, run, 0, hot_.n)) {
        ggml.ggml_backend_synchronize(device_);
        end_tiered(run);
        model.switch_off(layer, "the hot device failed to compute");
        return on_the_cpu(run);
    }
    // Into memory that isn't pinned a download may block: then it waits until the CPU is done.
    char *     target = cold_.n == 0 ? static_cast<char *>(run.dst->data) : run.staged_rows;
    const bool early  = cold_.n == 0 || staging_.pinned != nullptr;
    if (early) {
        ggml.ggml_backend_tensor_get_async(device_, hot.down, target, 0, hot_.n * run.row);
    }
    const uint64_t issued = now_ns();

    // 3. The CPU computes what isn't resident.
    int status = STATUS_SUCCESS;
    if (cold_.n > 0) {
        status = tiered ? compute_tiered(run) : run_cold(cold, run);
    }
    const uint64_t computed = now_ns();

    // 4. The device's rows go where they belong.
    if (!early) {
        ggml.ggml_backend_tensor_get_async(device_, hot.down, target, 0, hot_.n * run.row);
    }
    ggml.ggml_backend_synchronize(device_);
    const uint64_t collected = now_ns();
    if (status == STATUS_SUCCESS && cold_.n > 0) {
        status = scatter(run);
    }
    count(run, hot_.n, issued, computed, collected);
    return status;
}

void hot_context::count(const layer_run & run, int64_t n_hits, uint64_t issued, uint64_t computed, uint64_t collected) {
    hot_counters & counters = run.model->counters;
    const bool     decoding = run.n_tokens <= DECODE_TOKENS;
    (decoding ? counters.decode_hits : counters.prefill_hits) += n_hits;
    (decoding ? counters.decode_misses : counters.prefill_misses) += run.n_pairs - n_hits;
    counters.cpu_ns += computed - issued;
    counters.device_ns += (issued - run.start) + (now_ns() - computed);
    counters.wait_ns += collected - computed;
    if (!cold_loads_.empty()) {
        run.model->costs.computed_on_cpu(cold_loads_.size(), cold_.n, run.layer.expert_nbytes(), (computed - issued) / 1e9);
    }
}

}  // namespace hot
