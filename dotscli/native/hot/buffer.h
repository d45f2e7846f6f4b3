// The buffer type of the hot-expert device: host memory in which routed experts are found again.
#pragma once

#include "hot/model.h"

namespace hot {

// An expert weight by the tensor that llama.cpp made for it.
struct expert_weight {
    moe_layer * layer;
    expert_part part;
};

extern ggml_backend_buffer_type hot_buft;

// A buffer over memory that somebody else owns, such as a mapped file; null if there is no memory.
ggml_backend_buffer * buffer_over(void * memory, size_t size);

// {nullptr, ...} if the tensor is no routed expert of an opened model.
expert_weight weight_of(const ggml_tensor * tensor);

// The model of such a tensor, or null.
std::shared_ptr<hot_model> model_of(const ggml_tensor * weight);

}  // namespace hot
