// What computing experts on either side and copying them costs, as measured while prompts are read, and
// which of them to compute where because of that.
//
// Times depend on how many tokens an expert has at once, so they are kept by powers of two of that
// number. Safe to use from several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace hot {

class stream_costs {
  public:
    void computed_on_cpu(int64_t n_experts, int64_t n_pairs, size_t expert_nbytes, double seconds);
    void computed_on_device(int64_t n_experts, int64_t n_pairs, size_t expert_nbytes, double seconds);
    void uploaded(size_t nbytes, double seconds);

    // Seconds for one pair, where experts have n_pairs / n_experts of them; for one byte uploaded. 0 is
    // not measured yet; the device's are those of the nearest number that was.
    double cpu(int64_t n_experts, int64_t n_pairs, size_t expert_nbytes) const;
    double device(int64_t n_experts, int64_t n_pairs, size_t expert_nbytes) const;
    double upload() const;

  private:
    static constexpr int N_SIZES = 12;

    mutable std::mutex mutex_;
    double             cpu_[N_SIZES]    = {};  // seconds for a pair and a byte of the expert's weights
    double             device_[N_SIZES] = {};
    double             upload_          = 0;  // seconds for a byte

    static int  size_of(int64_t n_experts, int64_t n_pairs);
    static void learn(double & known, double now);
};

// How many tokens of a batch an expert has, those with most first.
struct expert_load {
    int32_t expert;
    int32_t n_pairs;
};

// How many of the cold experts to stream: as many as let both sides be done earliest.
//   n_resident_pairs: what the device computes anyway
//   expert_nbytes:    of one expert's weights
size_t n_to_stream(const stream_costs & costs, const std::vector<expert_load> & cold, int64_t n_resident_pairs, size_t expert_nbytes);

}  // namespace hot
