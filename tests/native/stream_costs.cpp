// hot/costs.cpp for tests: how many experts are streamed at given costs.
#include "hot/costs.h"

using namespace hot;

// Seconds for a pair on the CPU and on the device, for an expert's upload; 0: not measured yet.
extern "C" int n_to_stream_at(double cpu, double device, double upload, const int * pairs, int n, int n_resident_pairs) {
    constexpr size_t         expert_nbytes = 1 << 20;
    std::vector<expert_load> cold;
    int                      total = 0;
    for (int i = 0; i < n; i++) {
        cold.push_back({ i, pairs[i] });
        total += pairs[i];
    }
    stream_costs costs;
    if (cpu > 0) {
        costs.computed_on_cpu(n, total, expert_nbytes, cpu * total);
    }
    if (device > 0) {
        costs.computed_on_device(n, total, expert_nbytes, device * total);
    }
    if (upload > 0) {
        costs.uploaded(expert_nbytes, upload);
    }
    return int(n_to_stream(costs, cold, n_resident_pairs, expert_nbytes));
}
