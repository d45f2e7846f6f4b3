// A stand-in for the CUDA runtime: the calls of bench/gpu_link.py and bench/gpu_auto.py, with memory
// of the host as the device's, and copies that are done when they are begun.
#include <cstdlib>
#include <cstring>

typedef void * handle;

extern "C" {

int cudaMalloc(void ** to, size_t nbytes) { return (*to = malloc(nbytes)) == nullptr ? 2 : 0; }
int cudaMallocHost(void ** to, size_t nbytes) { return cudaMalloc(to, nbytes); }
int cudaMemcpyAsync(void * to, const void * from, size_t nbytes, int kind, handle) {
    memcpy(to, from, nbytes);
    return kind == 1 || kind == 2 ? 0 : 21;
}
int cudaStreamCreateWithFlags(handle * stream, unsigned flags) { *stream = nullptr; return flags == 1 ? 0 : 1; }
int cudaStreamSynchronize(handle) { return 0; }
int cudaEventCreateWithFlags(handle * event, unsigned flags) { *event = nullptr; return flags == 2 ? 0 : 1; }
int cudaEventRecord(handle, handle) { return 0; }
int cudaEventSynchronize(handle) { return 0; }
int cudaMemGetInfo(size_t * free, size_t * total) { *free = 3000; *total = 4000; return 0; }
const char * cudaGetErrorName(int error) { return error == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorUnknown"; }
}
