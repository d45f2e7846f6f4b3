// Checks what comes in from outside, picks the widest path that this processor can run, and looks
// for weights that no quantizer can use. The arithmetic is in the headers beside this file.
#include "quantizers.h"

#include <string.h>

#include "path.h"

namespace {

struct Path {
    const char *name;
    int (*quantize)(int type_id, const dots_job *job);
    bool (*available)();
};

#if defined(DOTS_X86)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx2() { return __builtin_cpu_supports("avx2"); }
#endif
bool always() { return true; }

constexpr Path kPaths[] = {
#if defined(DOTS_X86)
    {"avx512", dots_path_avx512, has_avx512},
    {"avx2", dots_path_avx2, has_avx2},
#endif
    {"baseline", dots_path_baseline, always},
};

// Weights per block; 0 for a type that is not ours.
int block_of(int type_id) {
    switch (type_id) {
        case 12: case 13: case 14: case 23: return 256;
        case 20: return 32;
        default: return 0;
    }
}

bool is_source(int kind) {
    return kind == DOTS_SOURCE_F32 || kind == DOTS_SOURCE_F16 || kind == DOTS_SOURCE_BF16;
}

// A float is finite unless all bits of its exponent are set. Pieces of 4096 are scanned without
// a branch inside, which the compiler turns into vectors.
template <class Bits> int64_t first_non_finite(const unsigned char *src, int64_t n, Bits exponent) {
    constexpr int64_t kPiece = 4096;
    for (int64_t start = 0; start < n; start += kPiece) {
        const int64_t end = n - start < kPiece ? n : start + kPiece;
        Bits found = 0;
        for (int64_t i = start; i < end; ++i) {
            Bits bits;
            memcpy(&bits, src + i * int64_t(sizeof bits), sizeof bits);
            found |= Bits((bits & exponent) == exponent);
        }
        for (int64_t i = start; found && i < end; ++i) {
            Bits bits;
            memcpy(&bits, src + i * int64_t(sizeof bits), sizeof bits);
            if ((bits & exponent) == exponent) return i;
        }
    }
    return -1;
}

}  // namespace

int dots_quantizers_abi(void) { return DOTS_QUANTIZERS_ABI; }

const char *dots_quantize_path(int index) {
    for (const Path &path : kPaths) {
        if (path.available() && index-- == 0) return path.name;
    }
    return nullptr;
}

int dots_quantize_on(const char *name, int type_id, const void *src, int src_kind, void *dst,
                     int64_t n_rows, int64_t n_per_row, const float *importance) {
    const int block = block_of(type_id);
    if (!block) return DOTS_BAD_TYPE;
    if (!is_source(src_kind)) return DOTS_BAD_SOURCE;
    int64_t n_weights, nbytes;
    if (n_rows < 0 || n_per_row < 0 || n_per_row % block != 0 ||
        __builtin_mul_overflow(n_rows, n_per_row, &n_weights) ||
        __builtin_mul_overflow(n_weights, 4, &nbytes)) {
        return DOTS_BAD_SHAPE;
    }
    if (n_weights && (!src || !dst)) return DOTS_BAD_POINTER;
    for (const Path &path : kPaths) {
        if (name ? strcmp(name, path.name) != 0 : !path.available()) continue;
        if (!path.available()) return DOTS_BAD_PATH;
        const dots_job job = {static_cast<const unsigned char *>(src),
                              static_cast<dots_source>(src_kind),
                              static_cast<unsigned char *>(dst),
                              n_weights / block,
                              n_per_row / block,
                              importance};
        return path.quantize(type_id, &job);
    }
    return DOTS_BAD_PATH;
}

int dots_quantize(int type_id, const void *src, int src_kind, void *dst, int64_t n_rows,
                  int64_t n_per_row, const float *importance) {
    return dots_quantize_on(nullptr, type_id, src, src_kind, dst, n_rows, n_per_row, importance);
}

int64_t dots_first_non_finite(const void *src, int src_kind, int64_t n) {
    const unsigned char *bytes = static_cast<const unsigned char *>(src);
    switch (src_kind) {
        case DOTS_SOURCE_F32: return first_non_finite<uint32_t>(bytes, n, 0x7f800000);
        case DOTS_SOURCE_F16: return first_non_finite<uint16_t>(bytes, n, 0x7c00);
        case DOTS_SOURCE_BF16: return first_non_finite<uint16_t>(bytes, n, 0x7f80);
        default: return -1;
    }
}
