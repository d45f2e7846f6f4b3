// The CPU's side of a layer whose experts aren't all in memory.
//
// Experts that are missing are asked for at once; pairs of those that are there are computed meanwhile.
// A few tokens wait for up and gate of all that is missing, and then for down; a long prompt takes
// experts by waves, each of them once, however little room there is.
#include "hot/clock.h"
#include "hot/context.h"

#include <algorithm>

namespace hot {

static constexpr size_t   WAVE        = 8;  // experts that a long prompt computes at once

bool hot_context::aborted() const {
    return abort_ != nullptr && abort_(abort_data_);
}

// Whoever fell back to the CPU has divided already, or not yet; here all pairs are the CPU's.
int hot_context::on_the_cpu_tiered(layer_run & run) {
    end_tiered(run);
    know_shapes(*run.model);
    all_cold(run.ids, hot_, cold_);
    const bool prepared = run.bulk || host_chains_.find(chain_key(run.layer, run.n_tokens, run.n_used, 1)) != nullptr ||
        prepare_host(run.layer, run.n_tokens, run.n_used);
    if (!prepared || !stage(run)) {
        return STATUS_ALLOC_FAILED;
    }
    const int status = begin_tiered(run) ? compute_tiered(run) : STATUS_FAILED;
    (run.n_tokens <= DECODE_TOKENS ? run.model->counters.decode_misses : run.model->counters.prefill_misses) += run.n_pairs;
    run.model->counters.cpu_ns += now_ns() - run.start;
    return status;
}

bool hot_context::begin_tiered(const layer_run & run) {
    ram_tier & tier  = *run.model->tier;
    const int  index = run.layer.index;
    end_tiered(run);
    if (!loads_of(cold_, run.layer.n_experts, by_expert_, tier_loads_)) {
        return false;
    }
    turn_.experts.clear();
    turn_.bulk = cold_.n >= run.layer.n_experts;
    std::vector<int32_t> coming;
    std::vector<int32_t> absent;
    int64_t              n_hits = 0;
    for (const expert_load & load : tier_loads_) {
        bool whole = false;
        if (!tier.take_present(index, load.expert, whole)) {
            absent.push_back(load.expert);
        } else if (whole) {
            turn_.experts.push_back(load.expert);
            n_hits += load.n_pairs;
        } else {
            coming.push_back(load.expert);
        }
    }
    turn_.n_there = turn_.experts.size();
    turn_.experts.insert(turn_.experts.end(), coming.begin(), coming.end());
    turn_.n_taken = turn_.experts.size();
    turn_.experts.insert(turn_.experts.end(), absent.begin(), absent.end());
    take_more(run);
    const bool decoding = run.n_tokens <= DECODE_TOKENS;
    (decoding ? tier.counters.decode_hits : tier.counters.prefill_hits) += uint64_t(n_hits);
    (decoding ? tier.counters.decode_misses : tier.counters.prefill_misses) += uint64_t(cold_.n - n_hits);
    if (turn_.bulk && turn_.n_taken == turn_.experts.size()) {
        tier.read_ahead(index + 1);
    }
    group_pairs(turn_.experts, run.layer.n_experts, by_expert_, turn_.first_pair, cold_, grouped_);
    return true;
}

// Asks for as many of the missing ones as there is room for; whether all of them are asked for.
bool hot_context::take_more(const layer_run & run) {
    const size_t n_left = turn_.experts.size() - turn_.n_taken;
    if (n_left > 0) {
        turn_.n_taken += run.model->tier->take(run.layer.index, turn_.experts.data() + turn_.n_taken, n_left, turn_.bulk);
    }
    return turn_.n_taken == turn_.experts.size();
}

void hot_context::end_tiered(const layer_run & run) {
    for (; turn_.n_released < turn_.n_taken; turn_.n_released++) {
        run.model->tier->release(run.layer.index, turn_.experts[turn_.n_released]);
    }
    turn_.n_taken    = 0;
    turn_.n_released = 0;
}

int hot_context::fail_tiered(const layer_run & run) {
    end_tiered(run);
    const std::string problem = run.model->tier->take_problem();
    if (!problem.empty()) {
        run.model->failed(problem);
    }
    return STATUS_FAILED;
}

bool hot_context::wait_tiered(const layer_run & run, size_t begin, size_t end, std::initializer_list<expert_part> parts) {
    for (expert_part part : parts) {
        for (size_t i = begin; i < end; i++) {
            if (!run.model->tier->wait(run.layer.index, turn_.experts[i], part, [this] { return aborted(); })) {
                return false;
            }
        }
    }
    return true;
}

// The pairs of some experts of the turn, which have been taken.
int hot_context::compute_wave(const layer_run & run, size_t begin, size_t end) {
    const int64_t first = turn_.first_pair[begin];
    const int64_t n     = turn_.first_pair[end] - first;
    chain         cold  = host_chain(run.layer, run.n_tokens, run.n_used, n);
    if (cold.graph == nullptr) {
        return STATUS_ALLOC_FAILED;
    }
    point_cold(cold, run, first);
    int status = STATUS_SUCCESS;
    if (cold.first == nullptr) {
        status = wait_tiered(run, begin, end, { PART_UP, PART_GATE, PART_DOWN }) ? forward(cold.graph) : fail_tiered(run);
    } else {
        status = wait_tiered(run, begin, end, { PART_UP, PART_GATE }) ? forward(cold.first) : fail_tiered(run);
        if (status == STATUS_SUCCESS) {
            status = wait_tiered(run, begin, end, { PART_DOWN }) ? forward(cold.rest) : fail_tiered(run);
        }
    }
    if (status == STATUS_SUCCESS) {
        keep_cold(cold, run, first, n);
        for (; turn_.n_released < end; turn_.n_released++) {
            run.model->tier->release(run.layer.index, turn_.experts[turn_.n_released]);
        }
    }
    return status;
}

int hot_context::compute_tiered(const layer_run & run) {
    const size_t n_experts = turn_.experts.size();
    int          status    = STATUS_SUCCESS;
    if (turn_.n_there == n_experts && hot_.n == 0) {
        status = forward(run.graph);  // as llama.cpp made it
        end_tiered(run);
        return status;
    }
    size_t next = 0;
    if (turn_.n_there > 0) {
        status = compute_wave(run, 0, turn_.n_there);
        next   = turn_.n_there;
    }
    uint64_t since = now_ns();
    while (status == STATUS_SUCCESS && next < n_experts) {
        const bool all = take_more(run);
        if (turn_.n_taken == next) {
            // Others hold whatever there is room for.
            if (now_ns() - since > run.model->tier->patience_ns()) {
                run.model->failed(NO_ROOM);
                return fail_tiered(run);
            }
            if (!run.model->tier->wait_for_room([this] { return aborted(); })) {
                return fail_tiered(run);
            }
            continue;
        }
        if (turn_.bulk && all) {
            run.model->tier->read_ahead(run.layer.index + 1);
        }
        const size_t end = turn_.bulk ? std::min(turn_.n_taken, next + WAVE) : turn_.n_taken;
        status           = compute_wave(run, next, end);
        next             = end;
        since            = now_ns();
    }
    end_tiered(run);
    return status;
}

int hot_context::run_piece(hot_model & model, moe_layer & layer, const ggml_tensor * ids, ggml_cgraph * graph) {
    const auto           ended = [this] { return aborted(); };
    std::vector<int32_t> taken;
    bool                 there = true;
    for (int64_t t = 0; t < ids->ne[1] && there; t++) {
        for (int64_t u = 0; u < ids->ne[0] && there; u++) {
            const int32_t expert = expert_at(ids, u, t);
            if (std::find(taken.begin(), taken.end(), expert) == taken.end()) {
                there = expert >= 0 && expert < layer.n_experts && model.tier->take_whole(layer.index, expert, ended);
                if (there) {
                    taken.push_back(expert);
                }
            }
        }
    }
    const int status = there ? forward(graph) : STATUS_FAILED;
    for (int32_t expert : taken) {
        model.tier->release(layer.index, expert);
    }
    if (!there && !aborted()) {
        const std::string problem = model.tier->take_problem();
        model.failed(problem.empty() ? NO_ROOM : problem);
    }
    return status;
}

}  // namespace hot
