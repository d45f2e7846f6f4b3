#include "hot/buffer.h"

#include "hot/aligned.h"
#include "hot/process.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <unordered_map>

namespace hot {

struct hot_buffer {
    std::shared_ptr<hot_model>                             model;  // null: memory for computing
    std::unordered_map<const ggml_tensor *, expert_weight> weights;
    char *                                                 base   = nullptr;
    bool                                                   owned  = false;
    bool                                                   tiered = false;  // base is the tier's
    ggml_backend_buffer *                                  pinned = nullptr;

    ~hot_buffer() {
        if (pinned != nullptr) {
            ggml.ggml_backend_buffer_free(pinned);
        } else if (owned) {
            free_aligned(base);
        }
    }
};

static constexpr size_t ALIGNMENT = 64;

// More than this is not asked for as pinned memory, which the whole machine shares.
static constexpr size_t MAX_PINNED_NBYTES = size_t(1) << 30;

static hot_buffer * context_of(const ggml_backend_buffer * buffer) {
    return static_cast<hot_buffer *>(buffer->context);
}

static void hot_buffer_free(ggml_backend_buffer * buffer) {
    hot_buffer * context = context_of(buffer);
    for (const auto & [tensor, weight] : context->weights) {
        context->model->forget_tensor(*weight.layer, weight.part);
    }
    delete context;
}

static void * hot_buffer_get_base(ggml_backend_buffer * buffer) {
    return context_of(buffer)->base;
}

// blk.17.ffn_up_exps.weight -> layer 17, PART_UP
static bool parse_name(const char * name, int & layer, expert_part & part) {
    static const char * const parts[N_PARTS] = { "ffn_up_exps.weight", "ffn_gate_exps.weight", "ffn_down_exps.weight" };
    if (strncmp(name, "blk.", 4) != 0) {
        return false;
    }
    char *     end    = nullptr;
    const long number = strtol(name + 4, &end, 10);
    if (end == name + 4 || *end != '.' || number < 0 || number > INT32_MAX) {
        return false;
    }
    for (int i = 0; i < N_PARTS; i++) {
        if (strcmp(end + 1, parts[i]) == 0) {
            layer = int(number);
            part  = expert_part(i);
            return true;
        }
    }
    return false;
}

static int hot_buffer_init_tensor(ggml_backend_buffer * buffer, ggml_tensor * tensor) {
    hot_buffer * context = context_of(buffer);
    int          index   = -1;
    expert_part  part    = PART_UP;
    if (context->model == nullptr || tensor->op != OP_NONE || tensor->view_src != nullptr || !parse_name(tensor->name, index, part)) {
        return STATUS_SUCCESS;
    }
    try {
        if (context->tiered) {
            context->model->spread(tensor, part, index);
        }
        expert_weight & weight = context->weights[tensor];
        weight                 = { context->model->add_tensor(tensor, part, index), part };
        if (weight.layer == nullptr) {
            context->weights.erase(tensor);
        }
    } catch (const std::bad_alloc &) {
        return STATUS_ALLOC_FAILED;
    }
    return STATUS_SUCCESS;
}

static void hot_buffer_memset_tensor(ggml_backend_buffer *, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    memset(static_cast<char *>(tensor->data) + offset, value, size);
}

static void hot_buffer_set_tensor(ggml_backend_buffer *, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    memcpy(static_cast<char *>(tensor->data) + offset, data, size);
}

static void hot_buffer_get_tensor(ggml_backend_buffer *, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    memcpy(data, static_cast<const char *>(tensor->data) + offset, size);
}

static bool hot_buffer_cpy_tensor(ggml_backend_buffer *, const ggml_tensor * src, ggml_tensor * dst) {
    if (src->buffer == nullptr || !ggml.ggml_backend_buft_is_host(src->buffer->buft)) {
        return false;
    }
    memcpy(dst->data, src->data, ggml.ggml_nbytes(src));
    return true;
}

static void hot_buffer_clear(ggml_backend_buffer * buffer, uint8_t value) {
    memset(context_of(buffer)->base, value, buffer->size);
}

static const ggml_backend_buffer_i hot_buffer_i = {
    /* .free_buffer   = */ hot_buffer_free,
    /* .get_base      = */ hot_buffer_get_base,
    /* .init_tensor   = */ hot_buffer_init_tensor,
    /* .memset_tensor = */ hot_buffer_memset_tensor,
    /* .set_tensor    = */ hot_buffer_set_tensor,
    /* .get_tensor    = */ hot_buffer_get_tensor,
    /* .set_tensor_2d = */ nullptr,
    /* .get_tensor_2d = */ nullptr,
    /* .cpy_tensor    = */ hot_buffer_cpy_tensor,
    /* .clear         = */ hot_buffer_clear,
    /* .reset         = */ nullptr,
};

// buffer type

static const char * hot_buft_get_name(ggml_backend_buffer_type *) {
    return "Hot";
}

// The buffer owns `context`, or nobody does.
static ggml_backend_buffer * new_buffer(ggml_backend_buffer_type * buft, std::unique_ptr<hot_buffer> context, size_t size) {
    ggml_backend_buffer * buffer = ggml.ggml_backend_buffer_init(buft, hot_buffer_i, context.get(), size);
    if (buffer != nullptr) {
        context.release();
    }
    return buffer;
}

// Memory that llama.cpp's scheduler computes in: pinned if the hot device has such, for results come
// from there. Weights that are read instead of mapped go into plain memory.
static ggml_backend_buffer * hot_buft_alloc_buffer(ggml_backend_buffer_type * buft, size_t size) {
    process_state &             s = state();
    std::unique_ptr<hot_buffer> context(new (std::nothrow) hot_buffer());
    if (context == nullptr || size > SIZE_MAX - ALIGNMENT) {
        return nullptr;
    }
    {
        std::lock_guard<std::mutex> lock(s.mutex);
        context->model = s.opened;
        if (context->model != nullptr && context->model->tier != nullptr) {
            context->base   = context->model->tier->reserve(size);
            context->tiered = true;
            return context->base != nullptr ? new_buffer(buft, std::move(context), size) : nullptr;
        }
        const auto last = s.models.find(s.last);
        if (context->model == nullptr && last != s.models.end() && last->second->device != nullptr && size <= MAX_PINNED_NBYTES) {
            ggml_backend_buffer_type * pinned = ggml.ggml_backend_dev_host_buffer_type(last->second->device);
            if (pinned != nullptr) {
                context->pinned = ggml.ggml_backend_buft_alloc_buffer(pinned, size);
            }
        }
    }
    if (context->pinned != nullptr) {
        context->base = static_cast<char *>(ggml.ggml_backend_buffer_get_base(context->pinned));
    } else {
        context->base  = allocate_aligned(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
        context->owned = true;
    }
    return context->base != nullptr ? new_buffer(buft, std::move(context), size) : nullptr;
}

static size_t hot_buft_get_alignment(ggml_backend_buffer_type *) {
    return ALIGNMENT;
}

// Experts of a tier begin with a page each.
static size_t hot_buft_get_alloc_size(ggml_backend_buffer_type *, const ggml_tensor * tensor) {
    int         index = -1;
    expert_part part  = PART_UP;
    if (parse_name(tensor->name, index, part)) {
        std::lock_guard<std::mutex> lock(state().mutex);
        const hot_model *           model  = state().opened.get();
        const tier_part *           placed = model != nullptr && model->tier != nullptr ? model->tier->part(index, part) : nullptr;
        if (placed != nullptr) {
            return ram_tier::room(*placed, tensor->ne[2]);
        }
    }
    return ggml.ggml_nbytes(tensor);
}

static bool hot_buft_is_host(ggml_backend_buffer_type *) {
    return true;
}

ggml_backend_buffer_type hot_buft = {
    /* .iface   = */ {
        /* .get_name       = */ hot_buft_get_name,
        /* .alloc_buffer   = */ hot_buft_alloc_buffer,
        /* .get_alignment  = */ hot_buft_get_alignment,
        /* .get_max_size   = */ nullptr,
        /* .get_alloc_size = */ hot_buft_get_alloc_size,
        /* .is_host        = */ hot_buft_is_host,
    },
    /* .device  = */ &hot_device,
    /* .context = */ nullptr,
};

// The buffer whose weights an operation multiplies with, or null if they aren't ours. llama.cpp probes
// buffer types with empty buffers when it looks for a home for a weight: those have no context.
static hot_buffer * buffer_of(const ggml_tensor * weight) {
    if (weight == nullptr || weight->buffer == nullptr || weight->buffer->buft != &hot_buft || weight->buffer->context == nullptr) {
        return nullptr;
    }
    hot_buffer * context = context_of(weight->buffer);
    return context->model != nullptr ? context : nullptr;
}

expert_weight weight_of(const ggml_tensor * tensor) {
    const hot_buffer * context = buffer_of(tensor);
    if (context != nullptr) {
        const auto found = context->weights.find(tensor);
        if (found != context->weights.end() && found->second.layer->ready) {
            return found->second;
        }
    }
    return { nullptr, PART_UP };
}

std::shared_ptr<hot_model> model_of(const ggml_tensor * weight) {
    const hot_buffer * context = buffer_of(weight);
    return context != nullptr ? context->model : nullptr;
}

// Nothing of a mapped file is copied until an expert becomes resident.
ggml_backend_buffer * buffer_over(void * memory, size_t size) {
    std::unique_ptr<hot_buffer> context(new (std::nothrow) hot_buffer());
    if (context == nullptr) {
        return nullptr;
    }
    context->base = static_cast<char *>(memory);
    {
        std::lock_guard<std::mutex> lock(state().mutex);
        context->model = state().opened;
    }
    return new_buffer(&hot_buft, std::move(context), size);
}

}  // namespace hot
