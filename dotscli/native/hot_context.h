// What one llama context needs to compute MoE layers on two sides at once.
//
// The four nodes of a layer arrive as `layer_nodes`. Pairs whose expert is resident go to the device,
// the others to an inner CPU backend; each side writes its own rows of down's result. This file knows
// nothing of ggml's tables of functions and decides nothing about residency.
#pragma once

#include "ggml_calls.h"
#include "hot_chain.h"
#include "hot_model.h"

#include <memory>
#include <unordered_map>
#include <vector>

namespace hot {

struct layer_nodes {
    moe_layer *   layer = nullptr;
    ggml_tensor * up    = nullptr;
    ggml_tensor * gate  = nullptr;
    ggml_tensor * glu   = nullptr;
    ggml_tensor * down  = nullptr;
};

// Memory that both sides of a transfer can name: pinned where the device offers it.
struct host_block {
    char *                data   = nullptr;
    size_t                nbytes = 0;
    ggml_backend_buffer * pinned = nullptr;

    ~host_block();
    bool ensure(size_t wanted, ggml_backend_buffer_type * pinned_type);  // contents are lost
    void clear();
};

// Chains by shape, each in a ggml context of its own. A chain for one token belongs to a layer, so
// that a device may keep a launched graph for it; others are pointed at the layer before each run.
struct chain_cache {
    std::unordered_map<uint64_t, chain> chains;
    std::vector<ggml_context *>         contexts;

    ~chain_cache();
    void clear();
};

// The pairs of one side, in the order in which they stand in ids.
struct pair_list {
    std::vector<int32_t> tokens;
    std::vector<int32_t> experts;  // on the device side: slots
    std::vector<int32_t> rows;     // of down's result: token * n_used + position
    int64_t              n = 0;

    void reset(size_t capacity);
    void add(int32_t token, int32_t expert, int32_t row);
};

class hot_context {
  public:
    // `threadpool` may be null; it outlives the context.
    hot_context(ggml_backend * cpu, ggml_threadpool * threadpool);
    ~hot_context();

    ggml_backend * cpu() const { return cpu_; }
    void           set_n_threads(int n_threads);

    // Computes llama.cpp's own nodes where they are, on the CPU.
    int forward(ggml_cgraph * graph);

    // Computes a layer, on both sides if some of its experts are resident. `graph` holds the four
    // nodes and nothing else.
    int run(const std::shared_ptr<hot_model> & model, const layer_nodes & nodes, ggml_cgraph * graph);

    // Room for a handful of tensors and graphs, empty again at every call.
    ggml_context * transient();

  private:
    ggml_backend * cpu_;
    int            n_threads_ = 0;
    // Where ggml keeps threads of its own (built without OpenMP), llama.cpp's CPU backend and both of
    // ours take turns on one pool. OpenMP's threads are shared as they are.
    ggml_threadpool * threadpool_;

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
    ggml_context *        transient_ = nullptr;

    std::vector<int> class_of_;  // [layer index] the first layer with the same types and shapes

    bool   bind(const std::shared_ptr<hot_model> & model);
    void   unbind();
    void   split_pairs(moe_layer & layer, const ggml_tensor * ids);
    bool   prepare_host(moe_layer & layer, int64_t n_tokens, int64_t n_used);
    bool   prepare_device(moe_layer & layer, int64_t n_tokens, int64_t n_used);
    bool   grow_device(ggml_backend_buffer *& buffer, size_t nbytes);
    chain  host_chain(moe_layer & layer, int64_t n_tokens, int64_t n_used);
    chain  device_chain(moe_layer & layer, int64_t n_tokens, int64_t n_used);
    int    run_cold(chain & c, ggml_tensor * dst, const char * x, size_t x_stride);
    int    scatter(ggml_tensor * dst, const char * rows, bool bulk);
    uint64_t chain_key(const moe_layer & layer, int64_t n_tokens, int64_t n_used, int64_t n_pairs) const;
};

}  // namespace hot
