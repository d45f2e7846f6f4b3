// Memory on the host: blocks that grow and are used again.
#pragma once

#include "hot/ggml_calls.h"

namespace hot {

constexpr size_t HOST_ALIGNMENT = 64;

inline size_t padded(size_t nbytes) {
    return (nbytes + HOST_ALIGNMENT - 1) / HOST_ALIGNMENT * HOST_ALIGNMENT;
}

// Memory of that type. Null if there is no such type, or none to be had: some devices then hand out plain
// memory in silence.
ggml_backend_buffer * pinned_memory(ggml_backend_buffer_type * type, size_t nbytes);

// Memory that both sides of a transfer can name: pinned where the device offers it.
struct host_block {
    char *                data   = nullptr;
    size_t                nbytes = 0;
    ggml_backend_buffer * pinned = nullptr;

    host_block() = default;
    ~host_block();
    host_block(const host_block &) = delete;
    host_block & operator=(const host_block &) = delete;

    bool ensure(size_t wanted, ggml_backend_buffer_type * pinned_type);  // contents are lost
    void clear();
};

}  // namespace hot
