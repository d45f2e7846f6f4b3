// What one llama context needs to compute MoE layers on two sides at once.
//
// The four nodes of a layer arrive as `layer_nodes`. Pairs whose expert is resident go to the device,
// the others to an inner CPU backend; each side writes its own rows of down's result. This file knows
// nothing of ggml's tables of functions and decides nothing about residency.
#pragma once

#include "hot/chain_cache.h"
#include "hot/host_memory.h"
#include "hot/match.h"
#include "hot/model.h"
#include "hot/pairs.h"
#include "hot/waves.h"

#include <memory>
#include <vector>

namespace hot {

// One layer of one batch.
struct layer_run {
    const std::shared_ptr<hot_model> & model;
    moe_layer &                        layer;
    ggml_cgraph *                      graph;  // llama.cpp's four nodes
    const ggml_tensor *                ids;
    const ggml_tensor *                x;
    ggml_tensor *                      dst;

    int64_t  n_used   = 0;
    int64_t  n_tokens = 0;
    int64_t  n_pairs  = 0;
    bool     bulk     = false;  // too large for the graphs that are kept
    size_t   row      = 0;      // bytes of a row of x and of dst
    uint64_t start    = 0;

    // Where both sides read and write, once there is memory for it.
    const char * x_data        = nullptr;
    size_t       x_stride      = 0;
    char *       staged_tokens = nullptr;
    char *       staged_ids    = nullptr;
    char *       staged_rows   = nullptr;  // of the device's pairs
};

class hot_context {
  public:
    // `threadpool` may be null; it outlives the context.
    hot_context(ggml_backend * cpu, ggml_threadpool * threadpool);
    ~hot_context();

    ggml_backend * cpu() const { return cpu_; }
    void           set_n_threads(int n_threads);
    void           set_abort_callback(ggml_abort_callback callback, void * data);

    // Computes llama.cpp's own nodes where they are, on the CPU.
    int forward(ggml_cgraph * graph);

    // Computes a layer, on both sides if some of its experts are resident. `graph` holds the four
    // nodes and nothing else.
    int run(const std::shared_ptr<hot_model> & model, const layer_nodes & nodes, ggml_cgraph * graph);

    // The same for one multiplication of a chain that arrived in pieces.
    int run_piece(hot_model & model, moe_layer & layer, const ggml_tensor * ids, ggml_cgraph * graph);

  private:
    ggml_backend * cpu_;
    int            n_threads_ = 0;
    int            cpu_threads_ = 0;  // that cpu_ was told of
    // Where ggml keeps threads of its own (built without OpenMP), llama.cpp's CPU backend and both of
    // ours take turns on one pool. OpenMP's threads are shared as they are.
    ggml_threadpool * threadpool_;

    ggml_abort_callback abort_      = nullptr;
    void *              abort_data_ = nullptr;

    std::shared_ptr<hot_model> model_;  // whose device is bound
    ggml_backend *             device_       = nullptr;
    ggml_backend_buffer_type * device_buft_  = nullptr;
    ggml_backend_buffer_type * pinned_buft_  = nullptr;  // null: plain memory is used, quietly

    pair_list hot_;
    pair_list cold_;

    chain_cache           host_chains_;
    chain_cache           device_chains_;
    host_block            host_scratch_;
    host_block            host_bulk_;
    ggml_backend_buffer * device_scratch_ = nullptr;
    ggml_backend_buffer * device_bulk_    = nullptr;
    size_t                device_bulk_refused_ = SIZE_MAX;  // so many bytes were not to be had
    host_block            staging_;
    context_ptr           transient_;

    const hot_model * shapes_of_ = nullptr;
    std::vector<int>  class_of_;  // [layer index] the first layer with the same types and shapes

    // Streaming: the cold experts with their pairs, those that go to the device, and their waves.
    std::unique_ptr<expert_stream> stream_;
    std::vector<expert_load>       cold_loads_;
    std::vector<expert_load>       streamed_;
    std::vector<stream_wave>       waves_;
    std::vector<int32_t>           by_expert_;   // [n_experts], for counting
    context_ptr                    job_ctx_[2];  // for the job that runs and the one before

    // Experts of the CPU's pairs in a layer whose experts aren't all in memory, in the order in which they
    // are computed: the first `n_there` were there, and `n_taken` of the others are on their way.
    struct tier_turn {
        std::vector<int32_t> experts;
        std::vector<int64_t> first_pair;  // of each of them, and the end
        size_t               n_there    = 0;
        size_t               n_taken    = 0;
        size_t               n_released = 0;
        bool                 bulk       = false;
    };
    tier_turn                turn_;
    std::vector<expert_load> tier_loads_;
    pair_list                grouped_;

    void set_cpu_threads(int n_threads);
    // One thread fewer for the CPU's side while another uploads experts.
    void share_cores(const layer_run & run);
    void know_shapes(const hot_model & model);
    bool bind(const std::shared_ptr<hot_model> & model);
    void unbind();

    // graphs.cpp: chains that are kept or made for once, and device memory for them.
    ggml_context * transient();  // empty again at every call; null: no memory
    uint64_t       chain_key(const moe_layer & layer, int64_t n_tokens, int64_t n_used, int64_t n_pairs) const;
    bool           prepare_host(moe_layer & layer, int64_t n_tokens, int64_t n_used);
    bool           prepare_device(moe_layer & layer, int64_t n_tokens, int64_t n_used);
    // For so many of the CPU's pairs, in place; or one without a graph if there is no memory for it.
    chain          host_chain(moe_layer & layer, int64_t n_tokens, int64_t n_used, int64_t n_pairs);
    chain          job_chain(const layer_run & run, ggml_tensor * const weights[N_PARTS], int64_t n_pairs, int which);
    bool           grow_device(ggml_backend_buffer *& buffer, size_t nbytes);
    bool           reserve_bulk(const layer_run & run, int64_t n_pairs);

    // divide.cpp: a layer of a batch.
    int  run_divided(layer_run & run);
    void count(const layer_run & run, int64_t n_hits, uint64_t issued, uint64_t computed, uint64_t collected);

    // sides.cpp: what each side does in it.
    int  on_the_cpu(layer_run & run);
    int  without_memory(layer_run & run);  // says so once
    bool stage(layer_run & run);
    bool begin_on_device(chain & c, const layer_run & run, int64_t first, int64_t n);
    int  run_cold(chain & c, const layer_run & run);
    void point_cold(chain & c, const layer_run & run, int64_t first);
    void keep_cold(const chain & c, const layer_run & run, int64_t first, int64_t n);
    int  scatter(const layer_run & run);

    // tiered.cpp: the CPU's side where experts are read from the disk.
    bool aborted() const;
    int  on_the_cpu_tiered(layer_run & run);
    bool begin_tiered(const layer_run & run);  // false: an id that no expert has
    int  compute_tiered(const layer_run & run);
    void end_tiered(const layer_run & run);
    bool take_more(const layer_run & run);
    bool wait_tiered(const layer_run & run, size_t begin, size_t end, std::initializer_list<expert_part> parts);
    int  compute_wave(const layer_run & run, size_t begin, size_t end);
    int  fail_tiered(const layer_run & run);

    // long_prompts.cpp: experts that are streamed to the device.
    int  run_streamed(layer_run & run);
    void choose_streamed(const layer_run & run);
    bool compute_job(const layer_run & run, ggml_tensor * const weights[N_PARTS], int64_t first, int64_t n, int which);
    bool compute_on_device(const layer_run & run, int64_t n_resident_pairs);
};

}  // namespace hot
