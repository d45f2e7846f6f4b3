// Aligned memory, which no function of C++17 gives on every system.
#pragma once

#include <cstddef>
#include <cstdlib>

namespace hot {

// Null if there is none. nbytes is a multiple of the alignment.
inline char * allocate_aligned(size_t alignment, size_t nbytes) {
#ifdef _WIN32
    return static_cast<char *>(_aligned_malloc(nbytes, alignment));
#else
    return static_cast<char *>(aligned_alloc(alignment, nbytes));
#endif
}

inline void free_aligned(void * data) {
#ifdef _WIN32
    _aligned_free(data);
#else
    free(data);
#endif
}

}  // namespace hot
