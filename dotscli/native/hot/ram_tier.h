// Which routed experts are in main memory, where there isn't room for all of them: they are read from
// the model's file when a token needs them, into places of those that are needed least.
//
// Whoever computes takes experts before and releases them after: a taken one stays. Least needed is
// whose tokens, each counting half of what the one HALF_LIFE tokens later counts, are fewest; in a long
// prompt, which uses nearly every expert of a layer, whose layer is longest not to come. This file knows
// no graphs and no tensors. Safe to use from several threads.
#pragma once

#include "hot/disk.h"
#include "hot/chain.h"
#include "hot/reserve.h"

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace hot {

constexpr const char * NO_ROOM = "the memory for experts has no room for one more";

// Sums since the load. A pair is one token at one of its experts; a hit's expert was there when it came.
struct ram_counters {
    std::atomic<uint64_t> decode_hits{ 0 };
    std::atomic<uint64_t> decode_misses{ 0 };
    std::atomic<uint64_t> prefill_hits{ 0 };
    std::atomic<uint64_t> prefill_misses{ 0 };
    std::atomic<uint64_t> read_experts{ 0 };
    std::atomic<uint64_t> reread_experts{ 0 };  // of these, after they had been read for the same batch
    std::atomic<uint64_t> read_nbytes{ 0 };
    std::atomic<uint64_t> ahead_nbytes{ 0 };  // of these, before anybody waited for them
    std::atomic<uint64_t> wait_ns{ 0 };       // computing threads waiting for the disk
};

// Where one part of a layer's experts lies: in the file, one behind the other, and in memory.
struct tier_part {
    int      file   = -1;
    uint64_t offset = 0;
    size_t   nbytes = 0;  // of one expert
    size_t   shift  = 0;  // of the first byte in its page, the same for every expert, as it is in the file
    size_t   stride = 0;  // from expert to expert in memory: whole pages
    char *   data   = nullptr;
};

class ram_tier {
  public:
    // `patience_s`: how long somebody waits for room that others hold.
    ram_tier(double half_life, double patience_s) : half_life_(half_life), patience_ns_(uint64_t(patience_s * 1e9)) {}

    uint64_t patience_ns() const { return patience_ns_; }

    // While the model loads. Empty, or why not.
    std::string add_file(const char * path);
    std::string add_part(int layer, expert_part part, int file, uint64_t offset, size_t nbytes, int n_experts);
    // Null if it wasn't added. What llama.cpp must set aside for it, with room to begin where it has to.
    const tier_part * part(int layer, expert_part part) const;
    static size_t     room(const tier_part & part, int64_t n_experts) { return part.stride * size_t(n_experts) + DISK_BLOCK; }
    char *            reserve(size_t nbytes);
    // `base` lies in what was reserved. Returns where the first expert's data begins.
    char *            place(int layer, expert_part part, char * base);

    bool   holds(int layer) const;  // all three parts are placed
    // Bytes that experts may take. Fewer than now: the least needed go at once, but for taken ones.
    void   set_budget(size_t nbytes);
    size_t resident_nbytes() const { return resident_nbytes_; }
    int    n_resident() const { return n_resident_; }
    bool   direct() const { return reader_.direct(); }

    // What a batch uses. The layers of a batch come in their order; `token` is one of its n_tokens.
    void begin_layer(int layer, int64_t n_tokens);
    void use(int layer, int expert, int64_t token, int64_t n_tokens);
    // So much use, in tokens, is known of earlier runs.
    void set_heat(int layer, int expert, double heat);

    // Takes an expert that is there or on its way. False: it is neither.
    bool take_present(int layer, int expert, bool & whole);
    // Takes experts, whose reads begin now, as many as there is room for; the number of them.
    //   bulk: a long prompt
    size_t take(int layer, const int32_t * experts, size_t n, bool bulk);
    void   release(int layer, int expert);
    // The device has a copy, or has none any more: whether it is needed here.
    void   set_on_device(int layer, int expert, bool there);

    // Waits until the part of a taken expert is there; false if it can't be read, or when `aborted` says so.
    bool wait(int layer, int expert, expert_part part, const std::function<bool()> & aborted);
    // Both, for all of an expert.
    bool take_whole(int layer, int expert, const std::function<bool()> & aborted);
    // Waits until somebody has released an expert; false as above.
    bool wait_for_room(const std::function<bool()> & aborted);
    std::string take_problem();  // of the last read that failed; until then nothing more is read

    // While nobody waits for the disk, these are read as long as there is room, in this order.
    void warm(std::vector<std::pair<int32_t, int32_t>> experts);
    // A long prompt is about to come here: what is longest not to come makes room.
    void read_ahead(int layer);

    ram_counters counters;

  private:
    enum state : uint8_t { ABSENT, COMING, THERE };

    struct tier_expert {
        state   is        = ABSENT;
        bool    on_device = false;
        bool    awaited   = false;  // on its way, and not only ahead
        uint8_t n_coming  = 0;
        bool    arrived[N_PARTS] = {};
        int32_t n_taken   = 0;
        int64_t read_in   = -1;  // batch
        double  heat      = 0;  // tokens, each by its weight
    };
    struct tier_layer {
        tier_part                part[N_PARTS];
        std::vector<tier_expert> experts;
        size_t                   nbytes = 0;  // of one expert, whole pages
    };
    struct victim {
        int32_t layer;
        int32_t expert;
        double  heat;
        double  worth;
    };
    typedef std::vector<std::pair<int32_t, int32_t>> expert_list;

    static size_t pages(const tier_part & part) { return (part.shift + part.nbytes + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK; }
    static char * start(const tier_part & part, int expert) { return part.data - part.shift + size_t(expert) * part.stride; }
    static uint64_t tag(int layer, int expert) { return uint64_t(layer) << 32 | uint64_t(expert); }

    // ram_tier.cpp; all of what follows is called with `mutex_` held.
    tier_expert * find(int layer, int expert);
    void begin(int layer, int expert, bool awaited);
    void begin_read(int layer, int expert, expert_part part, bool urgent);
    void arrived(int layer, int expert, expert_part part, const std::string & problem);
    void go_on_ahead();

    // ram_room.cpp: who goes.
    double weight(double token) const;
    double worth(int layer, const tier_expert & expert, bool bulk) const;
    void   list_victims(bool bulk);
    bool   next_victim(bool bulk, double below, victim & found);
    void   drop(int layer, int expert);
    void   take_pages(const victim & from, int layer, int expert);
    bool   make_room(int layer, int expert, bool bulk, double below);
    void   shrink();

    const double            half_life_;
    const uint64_t          patience_ns_;
    mutable std::mutex      mutex_;
    std::condition_variable changed_;
    std::deque<tier_layer>  layers_;  // by index; without experts: not one of ours
    reserved_memory         memory_;
    size_t                  budget_ = 0;
    std::atomic<size_t>     resident_nbytes_{ 0 };
    std::atomic<int>        n_resident_{ 0 };
    int                     current_  = 0;  // layer in work
    int64_t                 batch_    = 0;
    bool                    long_prompt_ = false;  // the batch in work is one
    double                  clock_    = 0;  // tokens so far, those of the batch in work included
    double                  epoch_    = 0;  // the token whose weight is 1
    std::vector<victim>     victims_;       // least needed last
    bool                    victims_bulk_  = false;
    int                     victims_layer_ = -1;
    expert_list             warm_;  // next one last, as in the other
    expert_list             next_;
    int                     n_ahead_ = 0;  // on their way, awaited by nobody
    std::string             problem_;
    std::string             last_problem_;
    disk_reader             reader_;  // last: its threads end before the rest goes
};

}  // namespace hot
