// Reads that fail: put in front of libc by LD_PRELOAD. Only files whose name ends in .gguf, and only pread,
// which llama.cpp doesn't use.
//   FAIL_HOW   eio, short (half of it), end (nothing, as at the end of the file), odd (a byte less), again
//              (EINTR)
//   FAIL_FROM  the first read that fails; FAIL_EVERY: and every so many-th after it, 1 for all
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <unistd.h>

static bool of_a_model(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    return n > 5 && memcmp(path + n - 5, ".gguf", 5) == 0;
}

static ssize_t failing(const char * name, int fd, void * to, size_t nbytes, off_t offset) {
    using function = ssize_t (*)(int, void *, size_t, off_t);
    static std::atomic<long> n_reads{ 0 };
    const auto               real  = reinterpret_cast<function>(dlsym(RTLD_NEXT, name));
    const char *             how   = getenv("FAIL_HOW");
    const char *             from  = getenv("FAIL_FROM");
    const char *             every = getenv("FAIL_EVERY");
    if (how == nullptr || from == nullptr || every == nullptr || !of_a_model(fd)) {
        return real(fd, to, nbytes, offset);
    }
    const long n = n_reads++ - atol(from);
    if (n < 0 || n % atol(every) != 0) {
        return real(fd, to, nbytes, offset);
    }
    switch (how[0]) {
        case 'e': errno = EIO; return how[1] == 'n' ? 0 : -1;
        case 'a': errno = EINTR; return -1;
        case 's': return real(fd, to, nbytes > 8192 ? nbytes / 2 / 4096 * 4096 : nbytes, offset);
        default:  return real(fd, to, nbytes > 1 ? nbytes - 1 : nbytes, offset);
    }
}

extern "C" ssize_t pread(int fd, void * to, size_t nbytes, off_t offset) {
    return failing("pread", fd, to, nbytes, offset);
}

extern "C" ssize_t pread64(int fd, void * to, size_t nbytes, off_t offset) {
    return failing("pread64", fd, to, nbytes, offset);
}
