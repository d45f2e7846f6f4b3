// What is known in this process: the models that were opened, and what ggml was told of us.
#pragma once

#include "hot/model.h"

#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace hot {

struct process_state {
    std::mutex                                    mutex;
    std::map<int32_t, std::shared_ptr<hot_model>> models;
    int32_t                                       last   = 0;
    std::shared_ptr<hot_model>                    opened;  // whose weights are being loaded
    std::string                                   start_problem;
    bool                                          started    = false;
    ggml_threadpool *                             threadpool = nullptr;
};

// Never destroyed: at the end of the process ggml may be gone before this library is.
process_state & state();

extern ggml_backend_device hot_device;
extern ggml_backend_reg    hot_reg;

}  // namespace hot
