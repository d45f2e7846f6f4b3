// The way of an expert's bytes from the host into a slab: the faster one of two.
//
// Staged: this thread copies them into pinned memory, in halves, and the device fetches one half while
// the other is filled. Direct: the device's driver takes them from where they are, in small pieces, so
// that a layer's own copies get a turn in between. Which is faster depends on the machine and its
// driver, so both are timed now and then. Where there is no pinned memory, all goes directly.
#pragma once

#include "hot/layer.h"

namespace hot {

enum upload_way { WAY_STAGED, WAY_DIRECT };

// Times the two ways in turn, keeps to the faster one for a while, and begins anew: a file that was on
// disk at first is in memory by then.
class way_choice {
  public:
    upload_way way() const { return way_; }
    void       took(size_t nbytes, double seconds);  // that way

  private:
    static constexpr int N_TRIES = 5;    // of each way
    static constexpr int PERIOD  = 256;  // from one comparison to the next

    upload_way way_ = WAY_STAGED;
    int        n_   = 0;  // timed in this period
    double     seconds_[2][N_TRIES] = {};  // [way] for a byte
};

// Copies on a stream of its own. One thread at a time.
class uploader {
  public:
    explicit uploader(ggml_backend_device * device);
    ~uploader();
    uploader(const uploader &) = delete;
    uploader & operator=(const uploader &) = delete;

    // How whatever is copied before the next wait() gets there.
    upload_way way() const { return pinned_ != nullptr ? choice_.way() : WAY_DIRECT; }
    // The whole expert may be there only after wait().
    void copy(ggml_tensor * const host[N_PARTS], const expert_slab & slab, int64_t expert, int64_t slot);
    void wait();

  private:
    ggml_backend *        backend_;  // null: the device has no further stream, and copies block
    ggml_backend_buffer * pinned_ = nullptr;
    int                   half_   = 0;  // the one that is filled next: nothing is under way from it
    way_choice            choice_;
    size_t                nbytes_ = 0;  // copied since wait()
    uint64_t              began_  = 0;

    void stage(ggml_tensor * to, const char * source, size_t offset, size_t nbytes);
    void send(ggml_tensor * to, const char * source, size_t offset, size_t nbytes);
    void synchronize();
};

}  // namespace hot
