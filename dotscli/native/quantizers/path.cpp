// All five quantizers for one instruction set. CMakeLists.txt compiles this file once per path,
// with DOTS_LANES and DOTS_PATH (the name of the function it defines) set and that processor's
// instructions allowed.
#include "affine.h"
#include "nonlinear.h"
#include "path.h"
#include "symmetric.h"

int DOTS_PATH(int type_id, const dots_job *job) {
    switch (type_id) {
        case 12: quantize_blocks<Q4K>(*job); return DOTS_OK;
        case 13: quantize_blocks<Q5K>(*job); return DOTS_OK;
        case 14: quantize_blocks<Q6K>(*job); return DOTS_OK;
        case 20: quantize_blocks<IQ4NL>(*job); return DOTS_OK;
        case 23: quantize_blocks<IQ4XS>(*job); return DOTS_OK;
        default: return DOTS_BAD_TYPE;
    }
}
