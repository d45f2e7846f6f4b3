// What ggml asks of the device and of the registry that it stands in.
#include "hot/backend.h"
#include "hot/buffer.h"
#include "hot/process.h"

#include <cstring>

namespace hot {

process_state & state() {
    static process_state * the_state = new process_state();
    return *the_state;
}

static const char * hot_device_get_name(ggml_backend_device *) {
    return "Hot";
}

static const char * hot_device_get_description(ggml_backend_device *) {
    return "hot experts on a device, cold ones on the CPU";
}

static void hot_device_get_memory(ggml_backend_device *, size_t * free, size_t * total) {
    *free  = 0;
    *total = 0;
}

static int hot_device_get_type(ggml_backend_device *) {
    return DEVICE_ACCEL;
}

static void hot_device_get_props(ggml_backend_device * device, ggml_backend_dev_props * props) {
    props->name        = hot_device_get_name(device);
    props->description = hot_device_get_description(device);
    props->type        = DEVICE_ACCEL;
    props->device_id   = nullptr;
    hot_device_get_memory(device, &props->memory_free, &props->memory_total);
    props->caps = {
        /* .async                = */ false,
        /* .host_buffer          = */ false,
        /* .buffer_from_host_ptr = */ true,
        /* .events               = */ false,
        /* .mmap_support         = */ true,
    };
}

static ggml_backend * hot_device_init_backend(ggml_backend_device * device, const char *) {
    return new_backend(device);
}

static ggml_backend_buffer_type * hot_device_get_buffer_type(ggml_backend_device *) {
    return &hot_buft;
}

static ggml_backend_buffer * hot_device_buffer_from_host_ptr(ggml_backend_device *, void * ptr, size_t size, size_t) {
    return buffer_over(ptr, size);
}

// The only rule of admission: multiplications with the routed experts of an opened model, and the
// activation between two of them.
static bool hot_device_supports_op(ggml_backend_device *, const ggml_tensor * op) {
    if (op->op == OP_MUL_MAT_ID) {
        return op->src[1]->type == TYPE_F32 && weight_of(op->src[0]).layer != nullptr;
    }
    if (op->op == OP_GLU && op->op_params[0] == GLU_SWIGLU) {
        const ggml_tensor * gate = op->src[0];
        return gate->op == OP_MUL_MAT_ID && weight_of(gate->src[0]).layer != nullptr;
    }
    return false;
}

// Whatever lies in host memory is read where it is, so the scheduler copies nothing for a split.
static bool hot_device_supports_buft(ggml_backend_device *, ggml_backend_buffer_type * buft) {
    return ggml.ggml_backend_buft_is_host(buft);
}

static const ggml_backend_device_i hot_device_i = {
    /* .get_name             = */ hot_device_get_name,
    /* .get_description      = */ hot_device_get_description,
    /* .get_memory           = */ hot_device_get_memory,
    /* .get_type             = */ hot_device_get_type,
    /* .get_props            = */ hot_device_get_props,
    /* .init_backend         = */ hot_device_init_backend,
    /* .get_buffer_type      = */ hot_device_get_buffer_type,
    /* .get_host_buffer_type = */ nullptr,
    /* .buffer_from_host_ptr = */ hot_device_buffer_from_host_ptr,
    /* .supports_op          = */ hot_device_supports_op,
    /* .supports_buft        = */ hot_device_supports_buft,
    /* .offload_op           = */ nullptr,
    /* .event_new            = */ nullptr,
    /* .event_free           = */ nullptr,
    /* .event_synchronize    = */ nullptr,
};

ggml_backend_device hot_device = {
    /* .iface   = */ hot_device_i,
    /* .reg     = */ &hot_reg,
    /* .context = */ nullptr,
};

// registry

static const char * hot_reg_get_name(ggml_backend_reg *) {
    return "Hot";
}

static size_t hot_reg_get_device_count(ggml_backend_reg *) {
    return 1;
}

static ggml_backend_device * hot_reg_get_device(ggml_backend_reg *, size_t) {
    return &hot_device;
}

static void * hot_reg_get_proc_address(ggml_backend_reg *, const char * name) {
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(set_n_threads);
    }
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return reinterpret_cast<void *>(set_abort_callback);
    }
    return nullptr;
}

ggml_backend_reg hot_reg = {
    /* .api_version = */ BACKEND_API_VERSION,
    /* .iface       = */ {
        /* .get_name         = */ hot_reg_get_name,
        /* .get_device_count = */ hot_reg_get_device_count,
        /* .get_device       = */ hot_reg_get_device,
        /* .get_proc_address = */ hot_reg_get_proc_address,
    },
    /* .context     = */ nullptr,
};

}  // namespace hot
