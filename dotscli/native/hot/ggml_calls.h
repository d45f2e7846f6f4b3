// The ggml functions that the hot-expert backend calls, found in the running process.
#pragma once

#include "ggml_abi.h"

#include <memory>
#include <string>

namespace hot {

using namespace ggml_abi;

// name, result, arguments: one line per function of ggml's public interface.
#define HOT_GGML_FUNCTIONS(F)                                                                      \
    F(ggml_version, const char *, (void))                                                          \
    F(ggml_op_name, const char *, (int op))                                                        \
    F(ggml_glu_op_name, const char *, (int op))                                                    \
    F(ggml_type_name, const char *, (int type))                                                    \
    F(ggml_nbytes, size_t, (const ggml_tensor * tensor))                                           \
    F(ggml_is_contiguous, bool, (const ggml_tensor * tensor))                                      \
    F(ggml_tensor_overhead, size_t, (void))                                                        \
    F(ggml_init, ggml_context *, (ggml_init_params params))                                        \
    F(ggml_reset, void, (ggml_context * ctx))                                                      \
    F(ggml_free, void, (ggml_context * ctx))                                                       \
    F(ggml_new_tensor_1d, ggml_tensor *, (ggml_context * ctx, int type, int64_t ne0))              \
    F(ggml_new_tensor_2d, ggml_tensor *, (ggml_context * ctx, int type, int64_t ne0, int64_t ne1)) \
    F(ggml_new_tensor_3d, ggml_tensor *,                                                           \
      (ggml_context * ctx, int type, int64_t ne0, int64_t ne1, int64_t ne2))                       \
    F(ggml_reshape_2d, ggml_tensor *,                                                              \
      (ggml_context * ctx, ggml_tensor * a, int64_t ne0, int64_t ne1))                             \
    F(ggml_reshape_3d, ggml_tensor *,                                                              \
      (ggml_context * ctx, ggml_tensor * a, int64_t ne0, int64_t ne1, int64_t ne2))                \
    F(ggml_get_rows, ggml_tensor *, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * rows))     \
    F(ggml_set_rows, ggml_tensor *,                                                                \
      (ggml_context * ctx, ggml_tensor * dst, ggml_tensor * src, ggml_tensor * rows))              \
    F(ggml_mul_mat_id, ggml_tensor *,                                                              \
      (ggml_context * ctx, ggml_tensor * as, ggml_tensor * b, ggml_tensor * ids))                  \
    F(ggml_swiglu_split, ggml_tensor *, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b))    \
    F(ggml_new_graph_custom, ggml_cgraph *, (ggml_context * ctx, size_t size, bool grads))         \
    F(ggml_graph_overhead_custom, size_t, (size_t size, bool grads))                               \
    F(ggml_build_forward_expand, void, (ggml_cgraph * graph, ggml_tensor * tensor))                \
    F(ggml_graph_add_node, void, (ggml_cgraph * graph, ggml_tensor * tensor))                      \
    F(ggml_graph_n_nodes, int, (ggml_cgraph * graph))                                              \
    F(ggml_graph_node, ggml_tensor *, (ggml_cgraph * graph, int i))                                \
    F(ggml_backend_buffer_init, ggml_backend_buffer *,                                             \
      (ggml_backend_buffer_type * buft, ggml_backend_buffer_i iface, void * context, size_t size)) \
    F(ggml_backend_buffer_free, void, (ggml_backend_buffer * buffer))                              \
    F(ggml_backend_buffer_get_base, void *, (ggml_backend_buffer * buffer))                        \
    F(ggml_backend_buffer_get_size, size_t, (ggml_backend_buffer * buffer))                        \
    F(ggml_backend_buffer_get_type, ggml_backend_buffer_type *, (ggml_backend_buffer * buffer))    \
    F(ggml_backend_buffer_set_usage, void, (ggml_backend_buffer * buffer, int usage))              \
    F(ggml_backend_buffer_clear, void, (ggml_backend_buffer * buffer, uint8_t value))              \
    F(ggml_backend_buft_alloc_buffer, ggml_backend_buffer *,                                       \
      (ggml_backend_buffer_type * buft, size_t size))                                              \
    F(ggml_backend_buft_get_alignment, size_t, (ggml_backend_buffer_type * buft))                  \
    F(ggml_backend_buft_get_max_size, size_t, (ggml_backend_buffer_type * buft))                   \
    F(ggml_backend_buft_get_alloc_size, size_t,                                                    \
      (ggml_backend_buffer_type * buft, const ggml_tensor * tensor))                               \
    F(ggml_backend_buft_is_host, bool, (ggml_backend_buffer_type * buft))                          \
    F(ggml_backend_tensor_alloc, int,                                                              \
      (ggml_backend_buffer * buffer, ggml_tensor * tensor, void * address))                        \
    F(ggml_backend_view_init, int, (ggml_tensor * tensor))                                         \
    F(ggml_backend_tensor_set, void,                                                               \
      (ggml_tensor * tensor, const void * data, size_t offset, size_t size))                       \
    F(ggml_backend_tensor_get, void,                                                               \
      (const ggml_tensor * tensor, void * data, size_t offset, size_t size))                       \
    F(ggml_backend_tensor_set_async, void,                                                         \
      (ggml_backend * backend, ggml_tensor * tensor, const void * data, size_t offset,             \
       size_t size))                                                                               \
    F(ggml_backend_tensor_get_async, void,                                                         \
      (ggml_backend * backend, const ggml_tensor * tensor, void * data, size_t offset,             \
       size_t size))                                                                               \
    F(ggml_backend_synchronize, void, (ggml_backend * backend))                                    \
    F(ggml_backend_graph_compute_async, int, (ggml_backend * backend, ggml_cgraph * graph))        \
    F(ggml_backend_free, void, (ggml_backend * backend))                                           \
    F(ggml_backend_get_device, ggml_backend_device *, (ggml_backend * backend))                    \
    F(ggml_backend_dev_name, const char *, (ggml_backend_device * device))                         \
    F(ggml_backend_dev_type, int, (ggml_backend_device * device))                                  \
    F(ggml_backend_dev_get_props, void,                                                            \
      (ggml_backend_device * device, ggml_backend_dev_props * props))                              \
    F(ggml_backend_dev_init, ggml_backend *, (ggml_backend_device * device, const char * params))  \
    F(ggml_backend_dev_buffer_type, ggml_backend_buffer_type *, (ggml_backend_device * device))    \
    F(ggml_backend_dev_host_buffer_type, ggml_backend_buffer_type *,                               \
      (ggml_backend_device * device))                                                              \
    F(ggml_backend_dev_supports_op, bool, (ggml_backend_device * device, const ggml_tensor * op))  \
    F(ggml_backend_dev_backend_reg, ggml_backend_reg *, (ggml_backend_device * device))            \
    F(ggml_backend_reg_get_proc_address, void *, (ggml_backend_reg * reg, const char * name))      \
    F(ggml_backend_register, void, (ggml_backend_reg * reg))                                       \
    F(ggml_backend_dev_by_name, ggml_backend_device *, (const char * name))                        \
    F(ggml_backend_dev_by_type, ggml_backend_device *, (int type))

struct ggml_calls {
#define HOT_DECLARE(name, result, arguments) result(*name) arguments;
    HOT_GGML_FUNCTIONS(HOT_DECLARE)
#undef HOT_DECLARE

    // Finds every function through the handle of the loaded libllama and compares the layouts of
    // ggml_abi.h with that library. Returns an empty string, or in one line why it can't be used.
    std::string load(void * libllama);
};

extern ggml_calls ggml;

struct context_deleter {
    void operator()(ggml_context * ctx) const { ggml.ggml_free(ctx); }
};
using context_ptr = std::unique_ptr<ggml_context, context_deleter>;

// For tensors and graphs without data, so many bytes of them. Null if there is no memory for it.
inline context_ptr new_context(size_t nbytes) {
    return context_ptr(ggml.ggml_init({ nbytes, nullptr, true }));
}

}  // namespace hot
