// A file that is only read, past the page cache where the system can do that, and through it.
//
// One implementation for each kind of system: raw_file_posix.cpp, raw_file_windows.cpp. It knows
// no queues and no threads; any number of them may read at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hot {

constexpr size_t DISK_BLOCK = 4096;  // what direct I/O works in, everywhere

// What one call has read. AGAIN: nothing, for no fault of the file. REFUSED: not in this way.
struct raw_read {
    enum outcome { READ, AGAIN, REFUSED, FAILED };
    outcome     is     = READ;
    size_t      nbytes = 0;  // 0 at the end of the file
    std::string problem;
};

class raw_file {
  public:
    raw_file() = default;
    ~raw_file();
    raw_file(const raw_file &) = delete;
    raw_file & operator=(const raw_file &) = delete;

    // Empty, or why it can't be read. The path is in UTF-8 on Windows.
    std::string open(const char * path);
    uint64_t    size() const { return size_; }
    bool        has_direct() const;  // it was opened past the page cache; reading may still be refused

    // At most nbytes; with `direct`, all three are multiples of DISK_BLOCK.
    raw_read read(bool direct, char * to, size_t nbytes, uint64_t offset) const;

  private:
    uint64_t size_ = 0;
    // A descriptor, or a HANDLE; -1 is neither.
    intptr_t direct_ = -1;
    intptr_t cached_ = -1;
};

}  // namespace hot
