#include "hot/ram_tier.h"

#include "hot/clock.h"

#include <algorithm>
#include <chrono>

namespace hot {

static constexpr int  MAX_LAYERS  = 4096;
static constexpr int  MOST_AHEAD  = 3;  // experts: enough to keep the disk at work, few to wait behind
static constexpr auto LOOK_EVERY  = std::chrono::milliseconds(20);

std::string ram_tier::add_file(const char * path) {
    return reader_.add_file(path);
}

std::string ram_tier::add_part(int layer, expert_part part, int file, uint64_t offset, size_t nbytes, int n_experts) {
    if (layer < 0 || layer >= MAX_LAYERS || part < 0 || part >= N_PARTS || n_experts < 1 || n_experts > INT16_MAX || nbytes == 0) {
        return "no such tensor of experts";
    }
    if (file < 0 || file >= reader_.n_files() || offset > reader_.size(file) || nbytes > (reader_.size(file) - offset) / size_t(n_experts)) {
        return "experts of layer " + std::to_string(layer) + " lie outside of their file";
    }
    std::lock_guard<std::mutex> lock(mutex_);
    if (layers_.size() <= size_t(layer)) {
        layers_.resize(layer + 1);
    }
    tier_layer & to = layers_[layer];
    if (to.experts.empty()) {
        to.experts.resize(n_experts);
    }
    if (to.experts.size() != size_t(n_experts) || to.part[part].nbytes != 0) {
        return "experts of layer " + std::to_string(layer) + " don't fit each other";
    }
    tier_part & made = to.part[part];
    made.file        = file;
    made.offset      = offset;
    made.nbytes      = nbytes;
    // Where experts are whole blocks, each lies in its first page as it does in the file's block, and goes
    // straight to its place.
    made.shift  = nbytes % DISK_BLOCK == 0 ? size_t(offset % DISK_BLOCK) : 0;
    made.stride = pages(made);
    to.nbytes += made.stride;
    return "";
}

const tier_part * ram_tier::part(int layer, expert_part part) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const bool                  known = layer >= 0 && size_t(layer) < layers_.size() && layers_[layer].part[part].nbytes != 0;
    return known ? &layers_[layer].part[part] : nullptr;
}

char * ram_tier::reserve(size_t nbytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t                      n_pieces = 0;
    for (const tier_layer & layer : layers_) {
        n_pieces += layer.experts.size() * N_PARTS;
    }
    memory_.allow_moves(n_pieces);
    return memory_.reserve(nbytes);
}

char * ram_tier::place(int layer, expert_part part, char * base) {
    std::lock_guard<std::mutex> lock(mutex_);
    tier_part &                 to = layers_[layer].part[part];
    to.data                        = base + (DISK_BLOCK - uintptr_t(base) % DISK_BLOCK) % DISK_BLOCK + to.shift;
    return to.data;
}

bool ram_tier::holds(int layer) const {
    std::lock_guard<std::mutex> lock(mutex_);
    if (layer < 0 || size_t(layer) >= layers_.size()) {
        return false;
    }
    const tier_layer & found = layers_[layer];
    return std::all_of(found.part, found.part + N_PARTS, [](const tier_part & part) { return part.data != nullptr; });
}

ram_tier::tier_expert * ram_tier::find(int layer, int expert) {
    const bool known = layer >= 0 && size_t(layer) < layers_.size() && expert >= 0 && size_t(expert) < layers_[layer].experts.size();
    return known ? &layers_[layer].experts[expert] : nullptr;
}

bool ram_tier::take_present(int layer, int expert, bool & whole) {
    std::lock_guard<std::mutex> lock(mutex_);
    tier_expert *               found = find(layer, expert);
    current_                          = layer;
    if (found == nullptr || found->is == ABSENT) {
        return false;
    }
    found->n_taken++;
    whole = found->is == THERE;
    if (!whole && !found->awaited) {
        found->awaited = true;
        n_ahead_--;
        reader_.hurry(tag(layer, expert));
    }
    return true;
}

size_t ram_tier::take(int layer, const int32_t * experts, size_t n, bool bulk) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<int32_t>        begun;
    size_t                      n_there = 0;
    current_                            = layer;
    long_prompt_                        = long_prompt_ || bulk;
    for (; n_there < n; n_there++) {
        const int32_t expert = experts[n_there];
        tier_expert * found  = find(layer, expert);
        if (found == nullptr) {
            break;
        }
        if (found->is == ABSENT) {
            if (!make_room(layer, expert, bulk, 1e300)) {
                break;
            }
            begin(layer, expert, true);
            begun.push_back(expert);
        } else if (!found->awaited && found->is == COMING) {
            found->awaited = true;
            n_ahead_--;
            reader_.hurry(tag(layer, expert));
        }
        found->n_taken++;
    }
    // A few are waited for part by part: what is computed first comes first.
    for (int which = 0; which < N_PARTS && !bulk; which++) {
        for (int32_t expert : begun) {
            begin_read(layer, expert, expert_part(which), true);
        }
    }
    for (size_t i = 0; i < begun.size() && bulk; i++) {
        for (int which = 0; which < N_PARTS; which++) {
            begin_read(layer, begun[i], expert_part(which), true);
        }
    }
    return n_there;
}

void ram_tier::begin(int layer, int expert, bool awaited) {
    tier_expert & one = layers_[layer].experts[expert];
    one.is            = COMING;
    one.awaited       = awaited;
    one.n_coming      = N_PARTS;
    std::fill(one.arrived, one.arrived + N_PARTS, false);
    n_ahead_ += !awaited;
    n_resident_++;
    resident_nbytes_ += layers_[layer].nbytes;
    counters.read_experts++;
    counters.reread_experts += one.read_in == batch_;
    one.read_in = batch_;
    for (const tier_part & part : layers_[layer].part) {
        counters.read_nbytes += part.nbytes;
        counters.ahead_nbytes += awaited ? 0 : part.nbytes;
    }
}

void ram_tier::begin_read(int layer, int expert, expert_part part, bool urgent) {
    const tier_part & from = layers_[layer].part[part];
    disk_read         wanted;
    wanted.file      = from.file;
    wanted.offset    = from.offset + uint64_t(expert) * from.nbytes;
    wanted.nbytes    = from.nbytes;
    wanted.to        = from.data + size_t(expert) * from.stride;
    wanted.tag       = tag(layer, expert);
    wanted.may_spill = true;  // into the rest of the expert's own pages
    wanted.done      = [=](const std::string & problem) {
        std::lock_guard<std::mutex> lock(mutex_);
        arrived(layer, expert, part, problem);
    };
    if (!memory_.use(start(from, expert), pages(from))) {
        arrived(layer, expert, part, "no memory left for experts");
    } else if (!reader_.read(std::move(wanted), urgent)) {
        arrived(layer, expert, part, "no thread left to read with");
    }
}

void ram_tier::arrived(int layer, int expert, expert_part part, const std::string & problem) {
    tier_expert & one = layers_[layer].experts[expert];
    one.arrived[part] = problem.empty();
    if (!problem.empty()) {
        problem_      = problem;
        last_problem_ = problem;
    }
    if (--one.n_coming == 0) {
        n_ahead_ -= !one.awaited;
        one.is = THERE;
        if (!std::all_of(one.arrived, one.arrived + N_PARTS, [](bool there) { return there; })) {
            // Told of already, perhaps, while its other parts came; who has begun to wait since is told as well.
            problem_ = last_problem_;
            drop(layer, expert);
        }
        go_on_ahead();
    }
    changed_.notify_all();
}

void ram_tier::release(int layer, int expert) {
    std::lock_guard<std::mutex> lock(mutex_);
    layers_[layer].experts[expert].n_taken--;
    if (resident_nbytes_ > budget_) {
        shrink();
    }
    changed_.notify_all();
}

void ram_tier::set_on_device(int layer, int expert, bool there) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (tier_expert * found = find(layer, expert)) {
        found->on_device = there;
    }
}

bool ram_tier::wait(int layer, int expert, expert_part part, const std::function<bool()> & aborted) {
    std::unique_lock<std::mutex> lock(mutex_);
    const tier_expert &          one   = layers_[layer].experts[expert];
    const uint64_t               began = now_ns();
    bool                         first = true;
    while (!one.arrived[part]) {
        if (one.is != COMING || !problem_.empty()) {
            return false;
        }
        if (!first) {
            lock.unlock();
            const bool over = aborted();
            lock.lock();
            if (over) {
                return false;
            }
        }
        first = false;
        changed_.wait_for(lock, LOOK_EVERY);
    }
    if (!first) {
        counters.wait_ns += now_ns() - began;
    }
    return true;
}

bool ram_tier::take_whole(int layer, int expert, const std::function<bool()> & aborted) {
    const int32_t  wanted = expert;
    const uint64_t began  = now_ns();
    while (take(layer, &wanted, 1, false) == 0) {
        // Whoever waits longer may be the one who holds what it waits for, or memory may be gone for good.
        if (now_ns() - began > patience_ns_) {
            std::lock_guard<std::mutex> lock(mutex_);
            problem_ = problem_.empty() ? NO_ROOM : problem_;
            return false;
        }
        if (!wait_for_room(aborted)) {
            return false;
        }
    }
    for (int part = 0; part < N_PARTS; part++) {
        if (!wait(layer, expert, expert_part(part), aborted)) {
            release(layer, expert);
            return false;
        }
    }
    return true;
}

bool ram_tier::wait_for_room(const std::function<bool()> & aborted) {
    if (aborted()) {
        return false;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, LOOK_EVERY);
    return problem_.empty();
}

std::string ram_tier::take_problem() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::string                 text;
    text.swap(problem_);
    return text;
}

void ram_tier::warm(expert_list experts) {
    std::reverse(experts.begin(), experts.end());
    std::lock_guard<std::mutex> lock(mutex_);
    warm_ = std::move(experts);
    go_on_ahead();
}

void ram_tier::read_ahead(int layer) {
    std::lock_guard<std::mutex> lock(mutex_);
    next_.clear();
    if (layer < 0 || size_t(layer) >= layers_.size()) {
        return;
    }
    for (size_t expert = layers_[layer].experts.size(); expert-- > 0;) {
        if (layers_[layer].experts[expert].is == ABSENT && !layers_[layer].experts[expert].on_device) {
            next_.push_back({ layer, int32_t(expert) });
        }
    }
    go_on_ahead();
}

// One after the other: whatever is awaited goes first.
void ram_tier::go_on_ahead() {
    while (!(next_.empty() && warm_.empty()) && n_ahead_ < MOST_AHEAD && !reader_.busy() && problem_.empty()) {
        const bool    bulk            = !next_.empty();
        expert_list & list            = bulk ? next_ : warm_;
        const auto [layer, expert]    = list.back();
        const tier_expert * candidate = find(layer, expert);
        if (candidate == nullptr || candidate->is != ABSENT || candidate->on_device) {
            list.pop_back();
            continue;
        }
        // To begin with nobody goes for it; in a prompt nobody who is to come as soon.
        if (!make_room(layer, expert, bulk, bulk ? worth(layer, tier_expert(), true) : -1e300)) {
            list.clear();
            continue;
        }
        list.pop_back();
        begin(layer, expert, false);
        for (int which = 0; which < N_PARTS; which++) {
            begin_read(layer, expert, expert_part(which), false);
        }
    }
}

}  // namespace hot
