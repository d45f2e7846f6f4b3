// What quantizers.cpp, which checks arguments and picks a path, knows of the paths. Plain data and
// plain functions only: this header is read by code compiled for different processors.
#pragma once

#include "quantizers.h"

struct dots_job {
    const unsigned char *src;  // weights of `source`, rows without gaps
    enum dots_source source;
    unsigned char *dst;
    int64_t n_blocks;          // in all rows together
    int64_t blocks_per_row;
    const float *importance;   // one float per column, or null
};

// One per path: does the job if type_id is known, and returns a dots_status.
int dots_path_baseline(int type_id, const dots_job *job);  // 4 lanes: SSE2, NEON, or plain code
int dots_path_avx2(int type_id, const dots_job *job);      // 8 lanes
int dots_path_avx512(int type_id, const dots_job *job);    // 16 lanes
