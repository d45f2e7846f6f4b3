#include "hot/disk.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

namespace hot {

static constexpr size_t PIECE     = size_t(1) << 20;  // larger ones are no faster, smaller ones cost CPU
static constexpr int    N_THREADS = 6;                // more are no faster on one disk
static constexpr int    N_TRIES   = 3;

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

disk_reader::~disk_reader() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        ending_ = true;
        urgent_.clear();
        idle_.clear();
    }
    more_.notify_all();
    for (std::thread & thread : threads_) {
        thread.join();
    }
    for (const auto & file : files_) {
        for (int open : { file->direct, file->cached }) {
            if (open >= 0) {
                close(open);
            }
        }
    }
}

std::string disk_reader::add_file(const char * path) {
    auto        file = std::make_unique<open_file>();
    struct stat found;
    file->path   = path;
    file->cached = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->cached < 0 || fstat(file->cached, &found) != 0) {
        return file->path + ": " + strerror(errno);
    }
    if (!S_ISREG(found.st_mode)) {
        return file->path + " is not a regular file";
    }
    file->size       = uint64_t(found.st_size);
    file->direct     = open_direct(path);
    file->may_direct = file->direct >= 0;
    files_.push_back(std::move(file));
    return "";
}

bool disk_reader::direct() const {
    return std::all_of(files_.begin(), files_.end(), [](const auto & file) { return file->may_direct.load(); });
}

bool disk_reader::start() {
    try {
        while (threads_.size() < N_THREADS) {
            threads_.emplace_back([this] { work(); });
        }
    } catch (const std::system_error &) {
        // fewer will do
    }
    return !threads_.empty();
}

bool disk_reader::read(disk_read wanted, bool urgent) {
    auto           all   = std::make_shared<whole>();
    const uint64_t begin = wanted.offset / DISK_BLOCK * DISK_BLOCK;
    const uint64_t end   = wanted.offset + wanted.nbytes;
    all->n_left          = size_t((end - begin + PIECE - 1) / PIECE);
    all->urgent          = urgent;
    all->wanted          = std::move(wanted);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!start()) {
            return false;
        }
        n_urgent_ += urgent;
        for (uint64_t at = begin; at < end; at += PIECE) {
            (urgent ? urgent_ : idle_).push_back({ all, at, size_t(std::min<uint64_t>(PIECE, end - at)) });
        }
    }
    more_.notify_all();
    return true;
}

void disk_reader::hurry(uint64_t tag) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto waits = [&](const piece & part) { return part.of->wanted.tag != tag; };
    const auto first = std::stable_partition(idle_.begin(), idle_.end(), waits);
    for (auto found = first; found != idle_.end(); ++found) {
        n_urgent_ += !found->of->urgent;
        found->of->urgent = true;
        urgent_.push_back(*found);
    }
    idle_.erase(first, idle_.end());
}

void disk_reader::work() {
    const std::unique_ptr<char, decltype(&free)> block(static_cast<char *>(aligned_alloc(DISK_BLOCK, PIECE + DISK_BLOCK)), free);
    std::unique_lock<std::mutex>                 lock(mutex_);
    for (;;) {
        more_.wait(lock, [this] { return ending_ || !urgent_.empty() || !idle_.empty(); });
        if (ending_) {
            return;
        }
        std::deque<piece> & queue = urgent_.empty() ? idle_ : urgent_;
        const piece         part  = queue.front();
        queue.pop_front();
        lock.unlock();
        std::string problem = block != nullptr ? read_piece(part, block.get()) : "no memory left to read with";
        lock.lock();
        whole & all = *part.of;
        if (!problem.empty()) {
            all.problem = std::move(problem);
        }
        if (--all.n_left == 0) {
            n_urgent_ -= all.urgent;
            lock.unlock();
            all.wanted.done(all.problem);
            lock.lock();
        }
    }
}

// Reads [offset, offset + nbytes), of which only the first `needed` bytes must be there.
static std::string read_all(int file, char * to, uint64_t offset, size_t nbytes, size_t needed, size_t block) {
    size_t done    = 0;
    int    n_tries = 0;
    while (done < needed) {
        const ssize_t got = pread(file, to + done, nbytes - done, off_t(offset + done));
        if (got == 0) {
            return "the file has become shorter";
        }
        if (got > 0) {
            // Direct I/O goes on from the beginning of a block only.
            const size_t whole = size_t(got) / block * block;
            if (done + size_t(got) < needed && whole == 0 && ++n_tries >= N_TRIES) {
                return "the file has become shorter";
            }
            done += done + size_t(got) >= needed ? size_t(got) : whole;
        } else if (errno == EINVAL) {
            return "EINVAL";
        } else if (errno != EINTR && ++n_tries >= N_TRIES) {
            return strerror(errno);
        }
    }
    return "";
}

std::string disk_reader::read_piece(const piece & part, char * block) {
    const disk_read & wanted = part.of->wanted;
    open_file &       file   = *files_[wanted.file];
    const uint64_t    from   = std::max(part.offset, wanted.offset);  // the first piece begins with its block
    const size_t      nbytes = size_t(part.offset + part.nbytes - from);
    char *            to     = wanted.to + (from - wanted.offset);
    std::string       problem;
    if (file.may_direct) {
        const size_t before   = size_t(from - part.offset);
        const bool   straight = wanted.may_spill && uintptr_t(to - before) % DISK_BLOCK == 0;
        char *       target   = straight ? to - before : block;
        const size_t blocks   = (part.nbytes + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK;
        problem               = read_all(file.direct, target, part.offset, blocks, part.nbytes, DISK_BLOCK);
        if (problem != "EINVAL") {
            if (problem.empty() && !straight) {
                memcpy(to, block + before, nbytes);
            }
            return problem.empty() ? "" : file.path + ": " + problem;
        }
        file.may_direct = false;  // a file system that opens files so, and reads none
    }
    problem = read_all(file.cached, to, from, nbytes, nbytes, 1);
    return problem.empty() ? "" : file.path + ": " + problem;
}

}  // namespace hot
