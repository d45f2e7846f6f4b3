// Not tried. A lookup on Windows sees one library only, and ggml's functions lie in several beside
// llama.dll: those of its folder that are loaded.
#include "hot/symbols.h"

#ifndef NOMINMAX
#define NOMINMAX
#endif
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <psapi.h>

#include <algorithm>
#include <string>
#include <vector>

namespace hot {

static std::wstring folder_of(HMODULE library) {
    std::vector<wchar_t> path(32768);  // the longest there is
    const std::wstring   found(path.data(), GetModuleFileNameW(library, path.data(), DWORD(path.size())));
    return found.substr(0, found.find_last_of(L"\\/") + 1);
}

void * find_symbol(void * library, const char * name) {
    const HMODULE first = static_cast<HMODULE>(library);
    if (FARPROC found = GetProcAddress(first, name)) {
        return reinterpret_cast<void *>(found);
    }
    std::vector<HMODULE> loaded(1024);
    DWORD                nbytes = 0;
    if (!EnumProcessModules(GetCurrentProcess(), loaded.data(), DWORD(loaded.size() * sizeof(HMODULE)), &nbytes)) {
        return nullptr;
    }
    loaded.resize(std::min(loaded.size(), nbytes / sizeof(HMODULE)));
    const std::wstring folder = folder_of(first);
    for (HMODULE other : loaded) {
        if (folder_of(other) == folder) {
            if (FARPROC found = GetProcAddress(other, name)) {
                return reinterpret_cast<void *>(found);
            }
        }
    }
    return nullptr;
}

}  // namespace hot
