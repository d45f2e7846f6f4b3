// Reads of a model's files that go past the page cache, by threads of their own.
//
// A read is cut into pieces, so that a single one has several threads to itself. Where a file system
// has no direct I/O, and for bytes whose place in memory doesn't fit the disk's blocks, the bytes take
// one copy more. This file knows nothing of experts.
#pragma once

#include "hot/raw_file.h"

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace hot {

struct disk_read {
    int      file   = 0;  // number of add_file()
    uint64_t offset = 0;
    size_t   nbytes = 0;
    char *   to     = nullptr;
    uint64_t tag    = 0;  // for hurry()
    // What lies between `to` and the blocks' ends before and behind it may be written as well; it has an
    // effect only where `to` and `offset` lie alike within their blocks.
    bool may_spill = false;
    // Called by a reading thread, once: empty, or what went wrong.
    std::function<void(const std::string & problem)> done;
};

class disk_reader {
  public:
    disk_reader() = default;
    ~disk_reader();  // waits for what is under way and drops what is queued
    disk_reader(const disk_reader &) = delete;
    disk_reader & operator=(const disk_reader &) = delete;

    // Empty, or why it can't be read. Files are numbered from 0 in the order of their coming.
    std::string add_file(const char * path);
    uint64_t    size(int file) const { return files_[file]->file.size(); }
    int         n_files() const { return int(files_.size()); }
    bool        direct() const;  // every file is read past the page cache

    // Threads begin with the first read. False if there are none to be had.
    bool read(disk_read wanted, bool urgent);
    // Reads with this tag are urgent from now on.
    void hurry(uint64_t tag);
    // Whether something urgent is queued or under way.
    bool busy() const { return n_urgent_ > 0; }

  private:
    struct open_file {
        std::string       path;
        raw_file          file;
        std::atomic<bool> may_direct{ false };
    };
    struct whole {
        disk_read   wanted;
        size_t      n_left = 0;
        std::string problem;
        bool        urgent = false;
    };
    struct piece {
        std::shared_ptr<whole> of;
        uint64_t               offset = 0;
        size_t                 nbytes = 0;
    };

    std::vector<std::unique_ptr<open_file>> files_;
    std::vector<std::thread>                threads_;
    std::mutex                              mutex_;
    std::condition_variable                 more_;
    std::deque<piece>                       urgent_;
    std::deque<piece>                       idle_;
    std::atomic<int>                        n_urgent_{ 0 };
    bool                                    ending_ = false;

    bool        start();
    void        work();
    std::string read_piece(const piece & part, char * block);
};

}  // namespace hot
