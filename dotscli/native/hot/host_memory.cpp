#include "hot/host_memory.h"

#include "hot/aligned.h"

namespace hot {

ggml_backend_buffer * pinned_memory(ggml_backend_buffer_type * type, size_t nbytes) {
    ggml_backend_buffer * buffer = type != nullptr ? ggml.ggml_backend_buft_alloc_buffer(type, nbytes) : nullptr;
    if (buffer != nullptr && ggml.ggml_backend_buffer_get_type(buffer) != type) {
        ggml.ggml_backend_buffer_free(buffer);
        return nullptr;
    }
    return buffer;
}

host_block::~host_block() {
    clear();
}

void host_block::clear() {
    if (pinned != nullptr) {
        ggml.ggml_backend_buffer_free(pinned);
    } else {
        free_aligned(data);
    }
    data   = nullptr;
    pinned = nullptr;
    nbytes = 0;
}

bool host_block::ensure(size_t wanted, ggml_backend_buffer_type * pinned_type) {
    if (wanted <= nbytes) {
        return true;
    }
    clear();
    wanted = padded(wanted);
    pinned = pinned_memory(pinned_type, wanted);
    data   = pinned != nullptr ? static_cast<char *>(ggml.ggml_backend_buffer_get_base(pinned)) : allocate_aligned(HOST_ALIGNMENT, wanted);
    nbytes = data != nullptr ? wanted : 0;
    return data != nullptr;
}

}  // namespace hot
