#include "hot/ggml_calls.h"

#include "hot/symbols.h"

#include <cstring>

namespace hot {

ggml_calls ggml = {};

// Several copies of libggml may lie on the disk and be mapped at once, each with a registry of its
// own. A lookup through libllama's handle searches what libllama itself was linked with.
static std::string find_functions(ggml_calls & calls, void * libllama) {
#define HOT_FIND(name, result, arguments)                                          \
    calls.name = reinterpret_cast<result(*) arguments>(find_symbol(libllama, #name)); \
    if (calls.name == nullptr) {                                                   \
        return "this llama.cpp has no function " #name;                            \
    }
    HOT_GGML_FUNCTIONS(HOT_FIND)
#undef HOT_FIND
    return "";
}

static std::string check_names(const ggml_calls & calls) {
    const struct {
        const char * found;
        const char * expected;
    } names[] = {
        { calls.ggml_op_name(OP_NONE), "NONE" },
        { calls.ggml_op_name(OP_MUL_MAT_ID), "MUL_MAT_ID" },
        { calls.ggml_op_name(OP_GET_ROWS), "GET_ROWS" },
        { calls.ggml_op_name(OP_SET_ROWS), "SET_ROWS" },
        { calls.ggml_op_name(OP_GLU), "GLU" },
        { calls.ggml_glu_op_name(GLU_SWIGLU), "SWIGLU" },
        { calls.ggml_type_name(TYPE_F32), "f32" },
        { calls.ggml_type_name(TYPE_I32), "i32" },
        { calls.ggml_type_name(TYPE_I64), "i64" },
    };
    for (const auto & name : names) {
        const char * found = name.found != nullptr ? name.found : "nothing";
        if (strcmp(found, name.expected) != 0) {
            return std::string("ggml numbers its operations differently: ") + name.expected + " is " + found;
        }
    }
    return "";
}

static bool same_tensor_layout(const ggml_calls & calls) {
    constexpr size_t object_size = 32;  // what ggml keeps in front of every tensor of a context
    if (calls.ggml_tensor_overhead() != sizeof(ggml_tensor) + object_size) {
        return false;
    }
    ggml_context * ctx = calls.ggml_init({ 4 * calls.ggml_tensor_overhead(), nullptr, true });
    if (ctx == nullptr) {
        return false;
    }
    ggml_tensor * a   = calls.ggml_new_tensor_3d(ctx, TYPE_F32, 32, 5, 3);
    ggml_tensor * b   = calls.ggml_new_tensor_3d(ctx, TYPE_F32, 32, 5, 3);
    ggml_tensor * glu = calls.ggml_swiglu_split(ctx, a, b);
    const bool same = a->type == TYPE_F32 && a->ne[0] == 32 && a->ne[1] == 5 && a->ne[2] == 3 && a->ne[3] == 1 &&
        a->nb[0] == 4 && a->nb[1] == 128 && a->nb[3] == 1920 && a->op == OP_NONE && a->data == nullptr &&
        glu->op == OP_GLU && glu->op_params[0] == GLU_SWIGLU && glu->src[0] == a && glu->src[1] == b &&
        glu->view_src == nullptr;
    calls.ggml_free(ctx);
    return same;
}

// Each public getter reads a field that lies behind a table of functions: if it agrees with our
// declaration, the table in front has the size that we think it has.
static bool same_backend_layout(const ggml_calls & calls, ggml_backend_device * cpu) {
    ggml_backend_reg * reg = calls.ggml_backend_dev_backend_reg(cpu);
    if (reg != cpu->reg || cpu->iface.get_name(cpu) != calls.ggml_backend_dev_name(cpu)) {
        return false;
    }
    ggml_backend * backend = calls.ggml_backend_dev_init(cpu, nullptr);
    if (backend == nullptr) {
        return false;
    }
    bool same = calls.ggml_backend_get_device(backend) == backend->device && backend->device == cpu &&
        backend->iface.graph_compute != nullptr && backend->iface.synchronize == nullptr;
    calls.ggml_backend_free(backend);

    ggml_backend_buffer_type * buft = calls.ggml_backend_dev_buffer_type(cpu);
    ggml_backend_buffer *      buffer = calls.ggml_backend_buft_alloc_buffer(buft, 4096);
    if (buffer == nullptr) {
        return false;
    }
    calls.ggml_backend_buffer_set_usage(buffer, USAGE_WEIGHTS);
    same = same && calls.ggml_backend_buffer_get_type(buffer) == buffer->buft && buffer->buft == buft &&
        calls.ggml_backend_buffer_get_size(buffer) == buffer->size && buffer->usage == USAGE_WEIGHTS &&
        buffer->iface.get_base(buffer) == calls.ggml_backend_buffer_get_base(buffer);
    calls.ggml_backend_buffer_free(buffer);
    return same;
}

std::string ggml_calls::load(void * libllama) {
    std::string problem = find_functions(*this, libllama);
    if (!problem.empty()) {
        return problem;
    }
    if (strncmp(ggml_version(), GGML_VERSION_PREFIX, strlen(GGML_VERSION_PREFIX)) != 0) {
        return std::string("it is written for ggml ") + GGML_VERSION_PREFIX + "x and llama.cpp runs on " + ggml_version();
    }
    problem = check_names(*this);
    if (!problem.empty()) {
        return problem;
    }
    if (!same_tensor_layout(*this)) {
        return std::string("ggml ") + ggml_version() + " lays out its tensors differently";
    }
    ggml_backend_device * cpu = ggml_backend_dev_by_type(DEVICE_CPU);
    if (cpu == nullptr) {
        return "llama.cpp has no CPU backend";
    }
    const int api_version = ggml_backend_dev_backend_reg(cpu)->api_version;
    if (api_version != BACKEND_API_VERSION) {
        return "it speaks version " + std::to_string(BACKEND_API_VERSION) + " of ggml's backend interface and llama.cpp version " +
            std::to_string(api_version);
    }
    if (!same_backend_layout(*this, cpu)) {
        return std::string("ggml ") + ggml_version() + " lays out its backends differently";
    }
    return "";
}

}  // namespace hot
