// A device for tests: the CPU in disguise, as far away and as unreliable as a real one.
//
// Its memory is no host memory. Transfers and graphs are queued and run later, by another thread, after
// a pause of random length; a download fills its target with NaNs at once and with the truth only when
// its turn comes. So whatever is read, reused or freed too early shows in the results. It can be told to
// refuse memory, or to fail a graph. Its host buffer type stands for pinned memory, which may turn out to
// be plain. Uploads out of either kind are counted and can be made slow.
#include "hot/ggml_calls.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>

using namespace hot;

static std::atomic<int>  allocations_left{ -1 };  // -1: as many as are wanted
static std::atomic<int>  graphs_left{ -1 };
static std::atomic<int>  offer_pinned{ 0 };  // 2: but plain memory is what there is
static std::atomic<int>  max_pause_us{ 200 };
static std::atomic<int>  n_pinned_buffers{ 0 };
static std::atomic<int>  n_plain_buffers{ 0 };  // that were handed out as pinned ones, and are still there

// By where they come from: plain memory, pinned memory.
static std::atomic<int>      extra_pause_us[2]  = {};
static std::atomic<uint64_t> uploaded_nbytes[2] = {};
static std::atomic<uint64_t> largest_upload[2]  = {};

// Where the pinned buffers lie.
static std::mutex                                  pinned_mutex;
static std::deque<std::pair<const void *, size_t>> pinned_ranges;

static ggml_backend_buffer_type  lag_buft;
static ggml_backend_buffer_type  lag_host_buft;
static ggml_backend_buffer_type  lag_plain_buft;
static ggml_backend_device       lag_device;
static ggml_backend_reg          lag_reg;

static bool take_one(std::atomic<int> & left) {
    int now = left;
    while (now > 0 && !left.compare_exchange_weak(now, now - 1)) {
    }
    return now != 0;
}

// buffers

static bool is_pinned(const void * data) {
    std::lock_guard<std::mutex> lock(pinned_mutex);
    for (const auto & [base, size] : pinned_ranges) {
        if (data >= base && data < static_cast<const char *>(base) + size) {
            return true;
        }
    }
    return false;
}

static void lag_buffer_free(ggml_backend_buffer * buffer) {
    n_plain_buffers -= buffer->buft == &lag_plain_buft;
    {
        std::lock_guard<std::mutex> lock(pinned_mutex);
        for (auto range = pinned_ranges.begin(); range != pinned_ranges.end(); ++range) {
            if (range->first == buffer->context) {
                pinned_ranges.erase(range);
                break;
            }
        }
    }
    free(buffer->context);
}

static void * lag_buffer_get_base(ggml_backend_buffer * buffer) {
    return buffer->context;
}

static void lag_buffer_set(ggml_backend_buffer *, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    memcpy(static_cast<char *>(tensor->data) + offset, data, size);
}

static void lag_buffer_get(ggml_backend_buffer *, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    memcpy(data, static_cast<const char *>(tensor->data) + offset, size);
}

static void lag_buffer_clear(ggml_backend_buffer * buffer, uint8_t value) {
    memset(buffer->context, value, buffer->size);
}

static ggml_backend_buffer * lag_alloc(ggml_backend_buffer_type * buft, size_t size) {
    if (buft == &lag_buft && !take_one(allocations_left)) {
        return nullptr;
    }
    void * memory = aligned_alloc(256, (size + 255) / 256 * 256);
    if (memory == nullptr) {
        return nullptr;
    }
    memset(memory, 0xff, size);  // NaNs, for whoever reads what nobody wrote
    if (buft == &lag_host_buft && offer_pinned == 2) {
        buft = &lag_plain_buft;
        n_plain_buffers++;
    }
    if (buft == &lag_host_buft) {
        n_pinned_buffers++;
        std::lock_guard<std::mutex> lock(pinned_mutex);
        pinned_ranges.emplace_back(memory, size);
    }
    ggml_backend_buffer_i iface = {};
    iface.free_buffer = lag_buffer_free;
    iface.get_base    = lag_buffer_get_base;
    iface.set_tensor  = lag_buffer_set;
    iface.get_tensor  = lag_buffer_get;
    iface.clear       = lag_buffer_clear;
    return ggml.ggml_backend_buffer_init(buft, iface, memory, size);
}

static const char * lag_name(ggml_backend_buffer_type *) {
    return "Lag";
}

static size_t lag_alignment(ggml_backend_buffer_type *) {
    return 256;
}

static size_t lag_alloc_size(ggml_backend_buffer_type *, const ggml_tensor * tensor) {
    // Some devices need room beside a result, for what such an operation works with.
    return ggml.ggml_nbytes(tensor) + (tensor->op == OP_MUL_MAT_ID ? 512 : 0);
}

static bool yes(ggml_backend_buffer_type *) {
    return true;
}

// backend

struct lag_context {
    ggml_backend *                    cpu;
    std::mutex                        mutex;
    std::condition_variable           changed;
    std::deque<std::function<void()>> queue;
    bool                              busy = false;
    bool                              stop = false;
    std::thread                       worker;

    lag_context() : cpu(ggml.ggml_backend_dev_init(ggml.ggml_backend_dev_by_type(DEVICE_CPU), nullptr)) {
        typedef void (*set_n_threads_t)(ggml_backend * backend, int n_threads);
        ggml_backend_reg * reg = ggml.ggml_backend_dev_backend_reg(ggml.ggml_backend_get_device(cpu));
        reinterpret_cast<set_n_threads_t>(ggml.ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"))(cpu, 1);
        worker = std::thread([this] { work(); });
    }

    ~lag_context() {
        {
            std::lock_guard<std::mutex> lock(mutex);
            stop = true;
        }
        changed.notify_all();
        worker.join();
        ggml.ggml_backend_free(cpu);
    }

    void push(std::function<void()> job) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            queue.push_back(std::move(job));
        }
        changed.notify_all();
    }

    void drain() {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [this] { return queue.empty() && !busy; });
    }

    void work() {
        std::minstd_rand             random(1);
        std::unique_lock<std::mutex> lock(mutex);
        while (true) {
            changed.wait(lock, [this] { return stop || !queue.empty(); });
            if (queue.empty()) {
                return;
            }
            std::function<void()> job = std::move(queue.front());
            queue.pop_front();
            busy = true;
            lock.unlock();
            std::this_thread::sleep_for(std::chrono::microseconds(random() % (max_pause_us + 1)));
            job();
            lock.lock();
            busy = false;
            changed.notify_all();
        }
    }
};

static lag_context & context_of(ggml_backend * backend) {
    return *static_cast<lag_context *>(backend->context);
}

static const char * lag_backend_name(ggml_backend *) {
    return "Lag0";
}

static void lag_backend_free(ggml_backend * backend) {
    delete &context_of(backend);
    delete backend;
}

static void lag_set_async(ggml_backend * backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    char * target = static_cast<char *>(tensor->data) + offset;
    const int pinned = is_pinned(data);
    uploaded_nbytes[pinned] += size;
    largest_upload[pinned] = std::max(largest_upload[pinned].load(), uint64_t(size));
    context_of(backend).push([=] {
        std::this_thread::sleep_for(std::chrono::microseconds(extra_pause_us[pinned]));
        memcpy(target, data, size);
    });
}

static void lag_get_async(ggml_backend * backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    const char * source = static_cast<const char *>(tensor->data) + offset;
    memset(data, 0xff, size);
    context_of(backend).push([=] { memcpy(data, source, size); });
}

static void lag_synchronize(ggml_backend * backend) {
    context_of(backend).drain();
}

static int lag_graph_compute(ggml_backend * backend, ggml_cgraph * graph) {
    lag_context & context = context_of(backend);
    if (!take_one(graphs_left)) {
        return STATUS_FAILED;
    }
    context.push([&context, graph] { ggml.ggml_backend_graph_compute_async(context.cpu, graph); });
    return STATUS_SUCCESS;
}

// device and registry

static const char * lag_device_name(ggml_backend_device *) {
    return "Lag0";
}

static void lag_device_memory(ggml_backend_device *, size_t * free, size_t * total) {
    *free = *total = size_t(1) << 30;
}

static int lag_device_type(ggml_backend_device *) {
    return 1;  // GPU
}

static void lag_device_props(ggml_backend_device * device, ggml_backend_dev_props * props) {
    *props             = {};
    props->name        = lag_device_name(device);
    props->description = "a far-away CPU";
    props->type        = 1;
    lag_device_memory(device, &props->memory_free, &props->memory_total);
    props->caps.async = true;
}

static ggml_backend * lag_device_init(ggml_backend_device * device, const char *) {
    static const uint8_t guid[16] = { 1 };
    ggml_backend_i       iface    = {};
    iface.get_name         = lag_backend_name;
    iface.free             = lag_backend_free;
    iface.set_tensor_async = lag_set_async;
    iface.get_tensor_async = lag_get_async;
    iface.synchronize      = lag_synchronize;
    iface.graph_compute    = lag_graph_compute;
    return new ggml_backend{ guid, iface, device, new lag_context() };
}

static ggml_backend_buffer_type * lag_device_buft(ggml_backend_device *) {
    return &lag_buft;
}

static ggml_backend_buffer_type * lag_device_host_buft(ggml_backend_device *) {
    return offer_pinned != 0 ? &lag_host_buft : nullptr;
}

static bool lag_supports_op(ggml_backend_device *, const ggml_tensor * op) {
    return ggml.ggml_backend_dev_supports_op(ggml.ggml_backend_dev_by_type(DEVICE_CPU), op);
}

static bool lag_supports_buft(ggml_backend_device *, ggml_backend_buffer_type * buft) {
    return buft == &lag_buft;
}

static const char * lag_reg_name(ggml_backend_reg *) {
    return "Lag";
}

static size_t lag_reg_count(ggml_backend_reg *) {
    return 1;
}

static ggml_backend_device * lag_reg_get(ggml_backend_reg *, size_t) {
    return &lag_device;
}

#define LAG_API extern "C" __attribute__((visibility("default")))

// Returns 0, or 1 if ggml is another one than the test is written for.
LAG_API int lag_start(void * libllama) {
    if (!ggml.load(libllama).empty()) {
        return 1;
    }
    lag_buft      = { { lag_name, lag_alloc, lag_alignment, nullptr, lag_alloc_size, nullptr }, &lag_device, nullptr };
    lag_host_buft = { { lag_name, lag_alloc, lag_alignment, nullptr, nullptr, yes }, &lag_device, nullptr };
    lag_plain_buft = { { lag_name, lag_alloc, lag_alignment, nullptr, nullptr, yes }, &lag_device, nullptr };

    lag_device.reg                         = &lag_reg;
    lag_device.iface.get_name              = lag_device_name;
    lag_device.iface.get_description       = lag_device_name;
    lag_device.iface.get_memory            = lag_device_memory;
    lag_device.iface.get_type              = lag_device_type;
    lag_device.iface.get_props             = lag_device_props;
    lag_device.iface.init_backend          = lag_device_init;
    lag_device.iface.get_buffer_type       = lag_device_buft;
    lag_device.iface.get_host_buffer_type  = lag_device_host_buft;
    lag_device.iface.supports_op           = lag_supports_op;
    lag_device.iface.supports_buft         = lag_supports_buft;

    lag_reg = { BACKEND_API_VERSION, { lag_reg_name, lag_reg_count, lag_reg_get, nullptr }, nullptr };
    ggml.ggml_backend_register(&lag_reg);
    return 0;
}

LAG_API void lag_limit_allocations(int n) {
    allocations_left = n;
}

LAG_API void lag_limit_graphs(int n) {
    graphs_left = n;
}

LAG_API void lag_offer_pinned(int offer) {
    offer_pinned = offer;
}

LAG_API void lag_set_max_pause_us(int pause) {
    max_pause_us = pause;
}

LAG_API int lag_n_pinned_buffers(void) {
    return n_pinned_buffers;
}

LAG_API int lag_n_plain_buffers(void) {
    return n_plain_buffers;
}

LAG_API void lag_set_extra_pause_us(int pinned, int pause) {
    extra_pause_us[pinned] = pause;
}

LAG_API uint64_t lag_uploaded_nbytes(int pinned) {
    return uploaded_nbytes[pinned];
}

LAG_API uint64_t lag_largest_upload(int pinned) {
    return largest_upload[pinned];
}
