// A backend of the hot-expert device: llama.cpp makes one for every context.
#pragma once

#include "hot/ggml_calls.h"

namespace hot {

// Null if there is no memory for it.
ggml_backend * new_backend(ggml_backend_device * device);

// Both are looked up by name and called by llama.cpp, with a backend of ours.
void set_n_threads(ggml_backend * backend, int n_threads);
void set_abort_callback(ggml_backend * backend, ggml_abort_callback callback, void * data);

}  // namespace hot
