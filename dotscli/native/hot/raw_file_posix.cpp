#include "hot/raw_file.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace hot {

static int open_direct(const char * path) {
#ifdef O_DIRECT
    return open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
#else
    const int file = open(path, O_RDONLY | O_CLOEXEC);
#ifdef F_NOCACHE  // macOS; not tried
    if (file >= 0) {
        fcntl(file, F_NOCACHE, 1);
    }
#endif
    return file;
#endif
}

raw_file::~raw_file() {
    for (intptr_t file : { direct_, cached_ }) {
        if (file >= 0) {
            close(int(file));
        }
    }
}

std::string raw_file::open(const char * path) {
    struct stat found;
    cached_ = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (cached_ < 0 || fstat(int(cached_), &found) != 0) {
        return std::string(path) + ": " + strerror(errno);
    }
    if (!S_ISREG(found.st_mode)) {
        return std::string(path) + " is not a regular file";
    }
    size_   = uint64_t(found.st_size);
    direct_ = open_direct(path);
    return "";
}

bool raw_file::has_direct() const {
    return direct_ >= 0;
}

raw_read raw_file::read(bool direct, char * to, size_t nbytes, uint64_t offset) const {
    const ssize_t got = pread(int(direct ? direct_ : cached_), to, nbytes, off_t(offset));
    if (got >= 0) {
        return { raw_read::READ, size_t(got), "" };
    }
    if (errno == EINTR) {
        return { raw_read::AGAIN, 0, "" };
    }
    return { direct && errno == EINVAL ? raw_read::REFUSED : raw_read::FAILED, 0, strerror(errno) };
}

}  // namespace hot
