// Preloaded by a test: counts the allocations that are asked for from one range of addresses, and lets
// those of C++ fail.
#include <cstddef>
#include <new>

extern "C" void * __libc_malloc(size_t size);

static char *        first = nullptr;
static char *        last  = nullptr;
static volatile long n_allocations = 0;
static volatile long n_left        = -1;  // allocations by new until it fails; -1: it doesn't

static bool from_there(void * caller) {
    return caller >= first && caller < last;
}

static void * allocate(size_t size, void * caller) {
    if (from_there(caller)) {
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

extern "C" void fail_new_after(long n) {
    n_left = n;
}

void * operator new(size_t size) {
    if (n_left >= 0 && from_there(__builtin_return_address(0)) && n_left-- == 0) {
        n_left = 0;
        throw std::bad_alloc();
    }
    return allocate(size, __builtin_return_address(0));
}
