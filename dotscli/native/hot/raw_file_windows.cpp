// Unbuffered overlapped reads. Tried under Wine, which reads through the page cache all the same; on
// Windows itself nobody has run it.
#include "hot/raw_file.h"

#ifndef NOMINMAX
#define NOMINMAX
#endif
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <algorithm>
#include <vector>

namespace hot {

static constexpr size_t MOST = size_t(1) << 30;  // of one call, whose length has 32 bits

static std::string said(DWORD error) {
    char         text[256] = "";
    const DWORD  n = FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, error, 0, text, sizeof text, nullptr);
    std::string  found(text, n);
    while (!found.empty() && (found.back() == '\n' || found.back() == '\r' || found.back() == '.')) {
        found.pop_back();
    }
    return found.empty() ? "error " + std::to_string(error) : found;
}

static HANDLE open_file(const wchar_t * path, DWORD flags) {
    return CreateFileW(path, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr, OPEN_EXISTING,
                       FILE_FLAG_OVERLAPPED | flags, nullptr);
}

static HANDLE handle(intptr_t file) {
    return reinterpret_cast<HANDLE>(file);
}

raw_file::~raw_file() {
    for (intptr_t file : { direct_, cached_ }) {
        if (file != -1) {
            CloseHandle(handle(file));
        }
    }
}

std::string raw_file::open(const char * path) {
    const int            n = MultiByteToWideChar(CP_UTF8, 0, path, -1, nullptr, 0);
    std::vector<wchar_t> wide(size_t(std::max(n, 1)));
    MultiByteToWideChar(CP_UTF8, 0, path, -1, wide.data(), n);
    static_assert(sizeof(intptr_t) == sizeof(HANDLE), "handles are kept as numbers");
    cached_ = reinterpret_cast<intptr_t>(open_file(wide.data(), 0));  // INVALID_HANDLE_VALUE is -1
    LARGE_INTEGER size;
    if (cached_ == -1 || !GetFileSizeEx(handle(cached_), &size)) {
        return std::string(path) + ": " + said(GetLastError());
    }
    if (GetFileType(handle(cached_)) != FILE_TYPE_DISK) {
        return std::string(path) + " is not a regular file";
    }
    size_   = uint64_t(size.QuadPart);
    direct_ = reinterpret_cast<intptr_t>(open_file(wide.data(), FILE_FLAG_NO_BUFFERING));
    return "";
}

bool raw_file::has_direct() const {
    return direct_ != -1;
}

raw_read raw_file::read(bool direct, char * to, size_t nbytes, uint64_t offset) const {
    const HANDLE file = handle(direct ? direct_ : cached_);
    OVERLAPPED   at   = {};
    at.Offset         = DWORD(offset);
    at.OffsetHigh     = DWORD(offset >> 32);
    at.hEvent         = CreateEventW(nullptr, TRUE, FALSE, nullptr);
    if (at.hEvent == nullptr) {
        return { raw_read::FAILED, 0, said(GetLastError()) };
    }
    DWORD got   = 0;
    DWORD error = ERROR_SUCCESS;
    if (!ReadFile(file, to, DWORD(std::min(nbytes, MOST)), nullptr, &at)) {
        error = GetLastError();
    }
    if (error == ERROR_SUCCESS || error == ERROR_IO_PENDING) {
        error = GetOverlappedResult(file, &at, &got, TRUE) ? ERROR_SUCCESS : GetLastError();
    }
    CloseHandle(at.hEvent);
    if (error == ERROR_SUCCESS || error == ERROR_HANDLE_EOF) {
        return { raw_read::READ, got, "" };
    }
    return { direct && error == ERROR_INVALID_PARAMETER ? raw_read::REFUSED : raw_read::FAILED, 0, said(error) };
}

}  // namespace hot
