// The C interface of libdots_hot: all that dotscli/hot/backend/plugin.py calls.
//
// A model is opened before llama.cpp loads its file and owns whatever routed experts are loaded into
// the buffer type until `dots_hot_loaded`, or until llama.cpp frees them again. Functions that return
// text return null when all is well and else one line that says why not; the text is valid until the
// same thread's next call.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define DOTS_HOT_API extern "C" __declspec(dllexport)
#else
#define DOTS_HOT_API extern "C" __attribute__((visibility("default")))
#endif

struct dots_hot_layer {
    int32_t  layer;
    int32_t  n_experts;
    int32_t  n_slots;
    int32_t  n_resident;
    uint64_t expert_nbytes;
    int32_t  off;     // 1: the device failed in this layer
    int32_t  tiered;  // 1: not all of its experts are in main memory
};

// Sums since the model was loaded. A pair is one token at one of its experts.
struct dots_hot_counters {
    uint64_t decode_hits;
    uint64_t decode_misses;
    uint64_t prefill_hits;
    uint64_t prefill_misses;
    uint64_t uploads;
    uint64_t uploaded_nbytes;
    uint64_t streamed_experts;
    uint64_t streamed_nbytes;
    uint64_t direct_nbytes;
    uint64_t spared_layers;
    uint64_t cpu_ns;
    uint64_t device_ns;
    uint64_t wait_ns;
};

// The memory tier: pairs of tokens whose expert was in main memory, and what was read.
struct dots_hot_ram {
    uint64_t decode_hits;
    uint64_t decode_misses;
    uint64_t prefill_hits;
    uint64_t prefill_misses;
    uint64_t read_experts;
    uint64_t reread_experts;  // of these, after they had been read for the same batch
    uint64_t read_nbytes;
    uint64_t ahead_nbytes;  // of these, before anybody waited for them
    uint64_t wait_ns;       // computing threads waiting for the disk
    uint64_t resident_nbytes;
    uint64_t resident_experts;
    uint64_t direct;  // 1: past the page cache
};

// Once per process, with the handle of the loaded libllama. Registers the backend with its ggml.
DOTS_HOT_API const char * dots_hot_start(void * libllama);

// What llama_model_params.tensor_buft_overrides needs for the routed experts.
DOTS_HOT_API void * dots_hot_buffer_type(void);

// The ggml_threadpool that contexts made from here on compute with, null for none. It must have as
// many threads as are ever asked for and outlive the contexts; llama_attach_threadpool takes the same.
DOTS_HOT_API void dots_hot_set_threadpool(void * threadpool);

// Device by its ggml name, null for none. Returns a model's number, or 0 and *problem.
DOTS_HOT_API int32_t      dots_hot_open(const char * device, const char ** problem);
// Between open and the load: experts are read from these files when they are needed, each counting half
// after so many tokens. Who finds no room for an expert waits so many seconds for it. Tensors by their bytes
// per expert; without all three a layer isn't read so.
DOTS_HOT_API const char * dots_hot_tier(int32_t model, const char * const * files, int32_t n_files, double half_life,
                                        double patience_s);
DOTS_HOT_API const char * dots_hot_tier_part(int32_t model, int32_t layer, int32_t part, int32_t file, uint64_t offset,
                                             uint64_t expert_nbytes, int32_t n_experts);
DOTS_HOT_API void         dots_hot_loaded(int32_t model);
DOTS_HOT_API void         dots_hot_close(int32_t model);

// Layers whose experts are there, and how many there are; fewer when the model is being freed.
DOTS_HOT_API int32_t      dots_hot_layers(int32_t model, dots_hot_layer * layers, int32_t n_max);
DOTS_HOT_API const char * dots_hot_reserve(int32_t model, int32_t layer, int32_t n_slots);
DOTS_HOT_API const char * dots_hot_place(int32_t model, int32_t layer, int32_t slot, int32_t expert);
DOTS_HOT_API int32_t      dots_hot_residents(int32_t model, int32_t layer, int32_t * expert_in, int32_t n_max);

// 1: from here on nothing is counted as heat; 2: and everything is computed on the CPU; 0: as ever.
DOTS_HOT_API void         dots_hot_set_trial(int32_t model, int32_t trial);

// Experts that aren't resident go through the device for long prompts: 0 never, 1 where that is
// measured to be faster (at first), 2 always.
DOTS_HOT_API void         dots_hot_set_streaming(int32_t model, int32_t streaming);

DOTS_HOT_API int32_t      dots_hot_read_counters(int32_t model, dots_hot_counters * counters);
// Tokens routed to each of the layer's experts: while decoding (batches up to 8), and in prompts.
DOTS_HOT_API int32_t      dots_hot_read_heat(int32_t model, int32_t layer, uint64_t * decode, uint64_t * prefill, int32_t n_max);
DOTS_HOT_API const char * dots_hot_trace(int32_t model, const char * path);
DOTS_HOT_API const char * dots_hot_messages(int32_t model);

// Memory for experts of a tier, at any time. Nothing is read before there is some.
DOTS_HOT_API void         dots_hot_set_ram(int32_t model, uint64_t nbytes);
// How much a layer's experts were used in earlier runs, in tokens.
DOTS_HOT_API void         dots_hot_set_heat(int32_t model, int32_t layer, const double * heat, int32_t n);
// Read while there is nothing else to do and room: pairs of layer and expert, in this order.
DOTS_HOT_API void         dots_hot_warm(int32_t model, const int32_t * experts, int32_t n);
DOTS_HOT_API int32_t      dots_hot_read_ram(int32_t model, dots_hot_ram * ram);
// Why the last computation failed, once; null if nothing is known.
DOTS_HOT_API const char * dots_hot_failure(int32_t model);
