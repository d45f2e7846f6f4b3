// ggml for tests, whose functions fail on demand. The backend looks up its functions through a handle:
// this library's has these in front of libllama's, which llama.cpp itself goes on using.
#include "ggml_abi.h"

#include <dlfcn.h>

#include <atomic>
#include <string>

using namespace ggml_abi;

#define API extern "C" __attribute__((visibility("default")))

static void *           libllama = nullptr;
static std::string      failing;          // a function's name
static std::atomic<int> n_good{ 0 };      // calls of it that succeed before the others fail
static std::atomic<int> n_calls{ 0 };     // of it
static bool             padded = false;

static bool fails(const char * name) {
    return failing == name && n_calls++ >= n_good;
}

#define WRAP(name, result, parameters, arguments, failure)                                       \
    API result name parameters {                                                                 \
        const auto real = reinterpret_cast<result(*) parameters>(dlsym(libllama, #name));        \
        return fails(#name) ? failure : real arguments;                                          \
    }

WRAP(ggml_init, ggml_context *, (ggml_init_params params), (params), nullptr)
WRAP(ggml_backend_dev_init, ggml_backend *, (ggml_backend_device * device, const char * params), (device, params), nullptr)
WRAP(ggml_backend_buft_alloc_buffer, ggml_backend_buffer *, (ggml_backend_buffer_type * buft, size_t size), (buft, size), nullptr)
WRAP(ggml_backend_buffer_init, ggml_backend_buffer *,
     (ggml_backend_buffer_type * buft, ggml_backend_buffer_i iface, void * context, size_t size), (buft, iface, context, size), nullptr)
WRAP(ggml_backend_tensor_alloc, int, (ggml_backend_buffer * buffer, ggml_tensor * tensor, void * at), (buffer, tensor, at), STATUS_FAILED)
WRAP(ggml_backend_view_init, int, (ggml_tensor * tensor), (tensor), STATUS_FAILED)

// Padded: every graph that the backend is given begins with a view, so that it is taken apart.
API int ggml_graph_n_nodes(ggml_cgraph * graph) {
    const auto real = reinterpret_cast<int (*)(ggml_cgraph *)>(dlsym(libllama, "ggml_graph_n_nodes"));
    return real(graph) + padded;
}

API ggml_tensor * ggml_graph_node(ggml_cgraph * graph, int i) {
    static ggml_tensor view = {};
    view.view_src           = &view;
    const auto real         = reinterpret_cast<ggml_tensor * (*)(ggml_cgraph *, int)>(dlsym(libllama, "ggml_graph_node"));
    return padded && i == 0 ? &view : real(graph, i - padded);
}

API void use_libllama(void * handle) {
    libllama = handle;
}

API void pad_graphs(int pad) {
    padded = pad != 0;
}

// All calls but the first `n` fail; null: none does. Returns how many calls there were of the one before.
API int fail_from(const char * name, int n) {
    failing = name != nullptr ? name : "";
    n_good  = n;
    return n_calls.exchange(0);
}
