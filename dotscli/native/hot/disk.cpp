#include "hot/disk.h"

#include "hot/aligned.h"

#include <algorithm>
#include <cstring>
#include <system_error>

namespace hot {

static constexpr size_t PIECE     = size_t(1) << 20;  // larger ones are no faster, smaller ones cost CPU
static constexpr int    N_THREADS = 6;                // more are no faster on one disk
static constexpr int    N_TRIES   = 3;

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
}

std::string disk_reader::add_file(const char * path) {
    auto file  = std::make_unique<open_file>();
    file->path = path;
    if (std::string problem = file->file.open(path); !problem.empty()) {
        return problem;
    }
    file->may_direct = file->file.has_direct();
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
    const std::unique_ptr<char, decltype(&free_aligned)> block(allocate_aligned(DISK_BLOCK, PIECE + DISK_BLOCK), free_aligned);
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

static const char * const REFUSED = "refused";
static const char * const SHORTER = "the file has become shorter";

// Reads [offset, offset + nbytes), of which only the first `needed` bytes must be there.
static std::string read_all(const raw_file & file, bool direct, char * to, uint64_t offset, size_t nbytes, size_t needed) {
    const size_t block   = direct ? DISK_BLOCK : 1;
    size_t       done    = 0;
    int          n_tries = 0;
    while (done < needed) {
        const raw_read got = file.read(direct, to + done, nbytes - done, offset + done);
        if (got.is == raw_read::READ && got.nbytes == 0) {
            return SHORTER;
        }
        if (got.is == raw_read::READ) {
            // Direct I/O goes on from the beginning of a block only.
            const bool   all   = done + got.nbytes >= needed;
            const size_t whole = got.nbytes / block * block;
            if (!all && whole == 0 && ++n_tries >= N_TRIES) {
                return SHORTER;
            }
            done += all ? got.nbytes : whole;
        } else if (got.is == raw_read::REFUSED) {
            return REFUSED;
        } else if (got.is == raw_read::FAILED && ++n_tries >= N_TRIES) {
            return got.problem;
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
        problem               = read_all(file.file, true, target, part.offset, blocks, part.nbytes);
        if (problem != REFUSED) {
            if (problem.empty() && !straight) {
                memcpy(to, block + before, nbytes);
            }
            return problem.empty() ? "" : file.path + ": " + problem;
        }
        file.may_direct = false;  // a file system that opens files so, and reads none
    }
    problem = read_all(file.file, false, to, from, nbytes, nbytes);
    return problem.empty() ? "" : file.path + ": " + problem;
}

}  // namespace hot
