// Not tried but for the test of tests/native/disk_test.cpp, under Wine.
#include "hot/reserve.h"

#ifndef NOMINMAX
#define NOMINMAX
#endif
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

namespace hot {

reserved_memory::~reserved_memory() {
    for (const range & one : ranges_) {
        VirtualFree(one.at, 0, MEM_RELEASE);
    }
}

char * reserved_memory::reserve(size_t nbytes) {
    ranges_.reserve(ranges_.size() + 1);
    void * at = VirtualAlloc(nullptr, nbytes, MEM_RESERVE, PAGE_READWRITE);
    if (at == nullptr) {
        return nullptr;
    }
    ranges_.push_back({ static_cast<char *>(at), nbytes });
    return static_cast<char *>(at);
}

void reserved_memory::allow_moves(size_t) {}

bool reserved_memory::use(char * at, size_t nbytes) {
    return VirtualAlloc(at, nbytes, MEM_COMMIT, PAGE_READWRITE) != nullptr;
}

void reserved_memory::give_back(char * at, size_t nbytes) {
    VirtualFree(at, nbytes, MEM_DECOMMIT);
}

bool reserved_memory::move(char *, char *, size_t) {
    return false;  // pages have no way from one address to another
}

}  // namespace hot
