#include "hot/reserve.h"

#include <cstdio>
#include <sys/mman.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4  // Linux 5.7
#endif

namespace hot {

static constexpr size_t OTHER_MAPPINGS = 10'000;  // of the whole process

static void * map(void * at, size_t nbytes, int more_flags) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | more_flags;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    at = mmap(at, nbytes, PROT_READ | PROT_WRITE, flags, -1, 0);
#ifdef __linux__
    if (at != MAP_FAILED) {
        madvise(at, nbytes, MADV_NOHUGEPAGE);  // one would reach into experts that aren't there
        madvise(at, nbytes, MADV_DONTFORK);    // a child's copy of a page must not get what a disk delivers
        madvise(at, nbytes, MADV_DONTDUMP);
    }
#endif
    return at;
}

reserved_memory::~reserved_memory() {
    for (const range & one : ranges_) {
        munmap(one.at, one.nbytes);
    }
}

char * reserved_memory::reserve(size_t nbytes) {
    ranges_.reserve(ranges_.size() + 1);
    void * at = map(nullptr, nbytes, 0);
    if (at == MAP_FAILED) {
        return nullptr;
    }
    ranges_.push_back({ static_cast<char *>(at), nbytes });
    return static_cast<char *>(at);
}

void reserved_memory::allow_moves(size_t n_pieces) {
    may_move_ = false;
#ifdef __linux__
    size_t most = 0;
    FILE * file = fopen("/proc/sys/vm/max_map_count", "re");
    if (file != nullptr) {
        if (fscanf(file, "%zu", &most) != 1) {
            most = 0;
        }
        fclose(file);
    }
    may_move_ = 2 * n_pieces + OTHER_MAPPINGS <= most;  // pieces and what lies between them
#else
    (void) n_pieces;
#endif
}

bool reserved_memory::use(char *, size_t) {
    return true;  // they come when they are written
}

void reserved_memory::give_back(char * at, size_t nbytes) {
#ifdef __linux__
    madvise(at, nbytes, MADV_DONTNEED);
#else
    map(at, nbytes, MAP_FIXED);
#endif
}

bool reserved_memory::move(char * from, char * to, size_t nbytes) {
#ifdef __linux__
    if (may_move_) {
        may_move_ = mremap(from, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) != MAP_FAILED;
        if (!may_move_) {
            map(to, nbytes, MAP_FIXED);  // it may have been unmapped by then
        }
        return may_move_;
    }
#else
    (void) from, (void) to, (void) nbytes;
#endif
    return false;
}

}  // namespace hot
