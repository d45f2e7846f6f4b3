#include "hot/costs.h"

#include <algorithm>

namespace hot {

static constexpr double NEW_WEIGHT = 0.25;  // of a measurement against those before
static constexpr double WORTH      = 0.95;  // of the time without streaming: less isn't worth changing sides
static constexpr size_t N_TO_LEARN = 4;     // experts that are streamed once, to measure it

int stream_costs::size_of(int64_t n_experts, int64_t n_pairs) {
    int size = 0;
    for (int64_t mean = n_pairs / std::max<int64_t>(n_experts, 1); mean > 1 && size < N_SIZES - 1; mean /= 2) {
        size++;
    }
    return size;
}

void stream_costs::learn(double & known, double now) {
    known = known > 0 ? (1 - NEW_WEIGHT) * known + NEW_WEIGHT * now : now;
}

void stream_costs::computed_on_cpu(int64_t n_experts, int64_t n_pairs, size_t expert_nbytes, double seconds) {
    if (n_pairs > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        learn(cpu_[size_of(n_experts, n_pairs)], seconds / n_pairs / expert_nbytes);
    }
}

void stream_costs::computed_on_device(int64_t n_experts, int64_t n_pairs, size_t expert_nbytes, double seconds) {
    if (n_pairs > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        learn(device_[size_of(n_experts, n_pairs)], seconds / n_pairs / expert_nbytes);
    }
}

void stream_costs::uploaded(size_t nbytes, double seconds) {
    std::lock_guard<std::mutex> lock(mutex_);
    learn(upload_, seconds / nbytes);
}

double stream_costs::cpu(int64_t n_experts, int64_t n_pairs, size_t expert_nbytes) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return cpu_[size_of(n_experts, n_pairs)] * expert_nbytes;
}

double stream_costs::device(int64_t n_experts, int64_t n_pairs, size_t expert_nbytes) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const int                   size = size_of(n_experts, n_pairs);
    for (int away = 0; away < N_SIZES; away++) {
        for (int other : { size - away, size + away }) {
            if (other >= 0 && other < N_SIZES && device_[other] > 0) {
                return device_[other] * expert_nbytes;
            }
        }
    }
    return 0;
}

double stream_costs::upload() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return upload_;
}

size_t n_to_stream(const stream_costs & costs, const std::vector<expert_load> & cold, int64_t n_resident_pairs, size_t expert_nbytes) {
    int64_t left = 0;
    for (const expert_load & load : cold) {
        left += load.n_pairs;
    }
    const int64_t n_experts = int64_t(cold.size());
    const double  cpu       = costs.cpu(n_experts, left, expert_nbytes);
    const double  device    = costs.device(n_experts, left, expert_nbytes);
    const double  upload    = costs.upload() * expert_nbytes;
    if (cold.size() < 2 || cpu == 0) {
        return 0;  // the CPU is measured first
    }
    // One expert stays on the CPU in any case, so that its times are known as they change.
    const size_t most = cold.size() - 1;
    if (device == 0 || upload == 0) {
        return std::min(N_TO_LEARN, most);
    }
    auto both = [&](size_t n, int64_t n_left, int64_t n_streamed) {
        const double computing = (n_resident_pairs + n_streamed) * device;
        // Uploads and computing overlap, but for the first upload.
        const double on_device = n == 0 ? computing : std::max(n * upload, computing) + upload;
        return std::max(n_left * cpu, on_device);
    };
    const double without  = both(0, left, 0);
    double       best     = without;
    size_t       best_n   = 0;
    int64_t      streamed = 0;
    for (size_t n = 1; n <= most; n++) {
        streamed += cold[n - 1].n_pairs;
        const double took = both(n, left - streamed, streamed);
        if (took < best) {
            best   = took;
            best_n = n;
        }
    }
    return best < WORTH * without ? best_n : 0;
}

}  // namespace hot
