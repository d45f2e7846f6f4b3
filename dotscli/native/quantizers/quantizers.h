// The C interface of libdots_quantizers: GGUF's K-quants and 4-bit non-linear quants, many blocks
// at a time. For finite weights the bytes are those of ggml_quantize_chunk (ggml-quants.c of
// llama.cpp, ggml 0.25.3) compiled without fused multiply-add.
//
// Nothing here allocates, aborts, writes outside dst or keeps state: any number of threads may
// call it at once.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DOTS_API __attribute__((visibility("default")))
#else
#define DOTS_API
#endif

// Raised whenever a function below changes its meaning or its arguments.
#define DOTS_QUANTIZERS_ABI 1

enum dots_source {  // the numbers are ggml_type's, as in the file that the weights come from
    DOTS_SOURCE_F32 = 0,
    DOTS_SOURCE_F16 = 1,
    DOTS_SOURCE_BF16 = 30,
};

enum dots_status {
    DOTS_OK = 0,
    DOTS_BAD_TYPE = 1,    // type_id is none of Q4_K 12, Q5_K 13, Q6_K 14, IQ4_NL 20, IQ4_XS 23
    DOTS_BAD_SOURCE = 2,  // src_kind is no dots_source
    DOTS_BAD_SHAPE = 3,   // negative, not a whole number of blocks, or more than memory can hold
    DOTS_BAD_POINTER = 4, // src or dst is null although there is something to do
    DOTS_BAD_PATH = 5,    // no such path, or this processor cannot run it
};

DOTS_API int dots_quantizers_abi(void);

// Quantizes n_rows rows of n_per_row weights, one after the other without gaps.
//
// type_id     ggml_type of the result; blocks of 256 weights (IQ4_NL: 32) along a row
// src         n_rows * n_per_row weights of src_kind, no alignment needed; widened to float in
//             pieces of a few kilobytes
// dst         n_rows * n_per_row / block * bytes per block, no alignment needed
// importance  n_per_row floats, one weight per column for all rows, or null
//
// Returns a dots_status. Weights that are NaN or infinite give bytes that mean nothing: ask
// dots_first_non_finite before.
DOTS_API int dots_quantize(int type_id, const void *src, int src_kind, void *dst, int64_t n_rows,
                           int64_t n_per_row, const float *importance);

// The same on one path, to compare and to measure them: "avx512", "avx2" or "baseline".
DOTS_API int dots_quantize_on(const char *path, int type_id, const void *src, int src_kind,
                              void *dst, int64_t n_rows, int64_t n_per_row,
                              const float *importance);

// The name of path number `index` among those that this processor can run, the one that
// dots_quantize takes first; null past the last one.
DOTS_API const char *dots_quantize_path(int index);

// The index of the first weight that is NaN or infinite; -1 if there is none (or src_kind is no
// dots_source).
DOTS_API int64_t dots_first_non_finite(const void *src, int src_kind, int64_t n);

#ifdef __cplusplus
}
#endif
