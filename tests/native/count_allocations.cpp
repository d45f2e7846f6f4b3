// Preloaded by a test: counts the allocations that are asked for from one range of addresses.
#include <cstddef>

extern "C" void * __libc_malloc(size_t size);

static char *        first = nullptr;
static char *        last  = nullptr;
static volatile long n_allocations = 0;

static void * allocate(size_t size, void * caller) {
    if (caller >= first && caller < last) {
        n_allocations = n_allocations + 1;
    }
    return __libc_malloc(size);
}

extern "C" void count_allocations_of(char * from, char * to) {
    first = from;
    last  = to;
}

extern "C" long allocations(void) {
    return n_allocations;
}

extern "C" void * malloc(size_t size) {
    return allocate(size, __builtin_return_address(0));
}

void * operator new(size_t size) {
    return allocate(size, __builtin_return_address(0));
}
