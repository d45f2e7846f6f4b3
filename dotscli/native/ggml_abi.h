// The part of ggml's binary interface that the hot-expert backend uses, in our own words.
//
// llama-cpp-python installs no header that describes a backend from the inside, and a wheel is
// built where ggml may not be installed at all. So the layouts stand here, as ggml 0.25 has them:
// static_asserts pin them for the compiler, `ggml_calls::load` compares them with the running
// library, and tests/test_hot_backend.py compares them with the installed public headers.
// Everything is declared inside a namespace, so that a test may include ggml.h beside it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ggml_abi {

constexpr int  BACKEND_API_VERSION = 2;
constexpr char GGML_VERSION_PREFIX[] = "0.25.";

// Values of ggml's enums. They move between versions: `ggml_calls::load` asks ggml for the names.
constexpr int TYPE_F32 = 0;
constexpr int TYPE_I32 = 26;
constexpr int TYPE_I64 = 27;

constexpr int OP_NONE       = 0;
constexpr int OP_MUL_MAT_ID = 30;
constexpr int OP_GET_ROWS   = 40;
constexpr int OP_SET_ROWS   = 42;
constexpr int OP_GLU        = 100;

constexpr int GLU_SWIGLU = 2;

constexpr int32_t FLAG_OUTPUT = 2;

constexpr int STATUS_SUCCESS      = 0;
constexpr int STATUS_FAILED       = -1;
constexpr int STATUS_ALLOC_FAILED = -2;

constexpr int DEVICE_CPU   = 0;
constexpr int DEVICE_ACCEL = 3;

constexpr int USAGE_WEIGHTS = 1;

struct ggml_context;
struct ggml_cgraph;
struct ggml_threadpool;
struct ggml_backend;
struct ggml_backend_buffer;
struct ggml_backend_buffer_type;
struct ggml_backend_device;
struct ggml_backend_event;
struct ggml_backend_reg;

typedef bool (*ggml_abort_callback)(void * data);

struct ggml_init_params {
    size_t mem_size;
    void * mem_buffer;
    bool   no_alloc;
};

struct ggml_tensor {
    int                   type;
    ggml_backend_buffer * buffer;
    int64_t               ne[4];
    size_t                nb[4];
    int                   op;
    int32_t               op_params[16];
    int32_t               flags;
    ggml_tensor *         src[10];
    ggml_tensor *         view_src;
    size_t                view_offs;
    void *                data;
    char                  name[64];
    void *                extra;
    char                  padding[8];
};

static_assert(sizeof(void *) == 8, "the layouts below are those of 64-bit machines");
static_assert(sizeof(ggml_tensor) == 336, "ggml_tensor");
static_assert(offsetof(ggml_tensor, ne) == 16, "ggml_tensor::ne");
static_assert(offsetof(ggml_tensor, op) == 80, "ggml_tensor::op");
static_assert(offsetof(ggml_tensor, src) == 152, "ggml_tensor::src");
static_assert(offsetof(ggml_tensor, data) == 248, "ggml_tensor::data");
static_assert(offsetof(ggml_tensor, name) == 256, "ggml_tensor::name");

struct ggml_backend_dev_caps {
    bool async;
    bool host_buffer;
    bool buffer_from_host_ptr;
    bool events;
    bool mmap_support;
};

struct ggml_backend_dev_props {
    const char *          name;
    const char *          description;
    size_t                memory_free;
    size_t                memory_total;
    int                   type;
    const char *          device_id;
    ggml_backend_dev_caps caps;
};

static_assert(sizeof(ggml_backend_dev_props) == 56, "ggml_backend_dev_props");

struct ggml_backend_buffer_type_i {
    const char *          (*get_name)(ggml_backend_buffer_type * buft);
    ggml_backend_buffer * (*alloc_buffer)(ggml_backend_buffer_type * buft, size_t size);
    size_t                (*get_alignment)(ggml_backend_buffer_type * buft);
    size_t                (*get_max_size)(ggml_backend_buffer_type * buft);
    size_t                (*get_alloc_size)(ggml_backend_buffer_type * buft, const ggml_tensor * tensor);
    bool                  (*is_host)(ggml_backend_buffer_type * buft);
};

struct ggml_backend_buffer_type {
    ggml_backend_buffer_type_i iface;
    ggml_backend_device *      device;
    void *                     context;
};

struct ggml_backend_buffer_i {
    void   (*free_buffer)(ggml_backend_buffer * buffer);
    void * (*get_base)(ggml_backend_buffer * buffer);
    int    (*init_tensor)(ggml_backend_buffer * buffer, ggml_tensor * tensor);
    void   (*memset_tensor)(ggml_backend_buffer * buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size);
    void   (*set_tensor)(ggml_backend_buffer * buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size);
    void   (*get_tensor)(ggml_backend_buffer * buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size);
    void   (*set_tensor_2d)(ggml_backend_buffer * buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data);
    void   (*get_tensor_2d)(ggml_backend_buffer * buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data);
    bool   (*cpy_tensor)(ggml_backend_buffer * buffer, const ggml_tensor * src, ggml_tensor * dst);
    void   (*clear)(ggml_backend_buffer * buffer, uint8_t value);
    void   (*reset)(ggml_backend_buffer * buffer);
};

struct ggml_backend_buffer {
    ggml_backend_buffer_i      iface;
    ggml_backend_buffer_type * buft;
    void *                     context;
    size_t                     size;
    int                        usage;
};

struct ggml_backend_i {
    const char * (*get_name)(ggml_backend * backend);
    void         (*free)(ggml_backend * backend);
    void         (*set_tensor_async)(ggml_backend * backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size);
    void         (*get_tensor_async)(ggml_backend * backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size);
    void         (*set_tensor_2d_async)(ggml_backend * backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data);
    void         (*get_tensor_2d_async)(ggml_backend * backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size, size_t n_copies, size_t stride_tensor, size_t stride_data);
    bool         (*cpy_tensor_async)(ggml_backend * src_backend, ggml_backend * dst_backend, const ggml_tensor * src, ggml_tensor * dst);
    void         (*synchronize)(ggml_backend * backend);
    void *       (*graph_plan_create)(ggml_backend * backend, const ggml_cgraph * graph);
    void         (*graph_plan_free)(ggml_backend * backend, void * plan);
    void         (*graph_plan_update)(ggml_backend * backend, void * plan, const ggml_cgraph * graph);
    int          (*graph_plan_compute)(ggml_backend * backend, void * plan);
    int          (*graph_compute)(ggml_backend * backend, ggml_cgraph * graph);
    void         (*event_record)(ggml_backend * backend, ggml_backend_event * event);
    void         (*event_wait)(ggml_backend * backend, ggml_backend_event * event);
    void         (*graph_optimize)(ggml_backend * backend, ggml_cgraph * graph, void * params);
};

struct ggml_backend {
    const uint8_t *       guid;  // 16 bytes
    ggml_backend_i        iface;
    ggml_backend_device * device;
    void *                context;
};

struct ggml_backend_device_i {
    const char *               (*get_name)(ggml_backend_device * device);
    const char *               (*get_description)(ggml_backend_device * device);
    void                       (*get_memory)(ggml_backend_device * device, size_t * free, size_t * total);
    int                        (*get_type)(ggml_backend_device * device);
    void                       (*get_props)(ggml_backend_device * device, ggml_backend_dev_props * props);
    ggml_backend *             (*init_backend)(ggml_backend_device * device, const char * params);
    ggml_backend_buffer_type * (*get_buffer_type)(ggml_backend_device * device);
    ggml_backend_buffer_type * (*get_host_buffer_type)(ggml_backend_device * device);
    ggml_backend_buffer *      (*buffer_from_host_ptr)(ggml_backend_device * device, void * ptr, size_t size, size_t max_tensor_size);
    bool                       (*supports_op)(ggml_backend_device * device, const ggml_tensor * op);
    bool                       (*supports_buft)(ggml_backend_device * device, ggml_backend_buffer_type * buft);
    bool                       (*offload_op)(ggml_backend_device * device, const ggml_tensor * op);
    ggml_backend_event *       (*event_new)(ggml_backend_device * device);
    void                       (*event_free)(ggml_backend_device * device, ggml_backend_event * event);
    void                       (*event_synchronize)(ggml_backend_device * device, ggml_backend_event * event);
};

struct ggml_backend_device {
    ggml_backend_device_i iface;
    ggml_backend_reg *    reg;
    void *                context;
};

struct ggml_backend_reg_i {
    const char *          (*get_name)(ggml_backend_reg * reg);
    size_t                (*get_device_count)(ggml_backend_reg * reg);
    ggml_backend_device * (*get_device)(ggml_backend_reg * reg, size_t index);
    void *                (*get_proc_address)(ggml_backend_reg * reg, const char * name);
};

struct ggml_backend_reg {
    int                api_version;
    ggml_backend_reg_i iface;
    void *             context;
};

static_assert(sizeof(ggml_backend_buffer_type) == 8 * 8, "ggml_backend_buffer_type");
static_assert(sizeof(ggml_backend_buffer) == 15 * 8, "ggml_backend_buffer");
static_assert(sizeof(ggml_backend) == 19 * 8, "ggml_backend");
static_assert(sizeof(ggml_backend_device) == 17 * 8, "ggml_backend_device");
static_assert(sizeof(ggml_backend_reg) == 6 * 8, "ggml_backend_reg");

}  // namespace ggml_abi
