// Who is needed how much, and who makes room.
#include "hot/ram_tier.h"

#include <algorithm>
#include <cmath>

namespace hot {

static constexpr size_t N_LISTED     = 64;   // victims found by one look at all experts
static constexpr double MAX_EXPONENT = 256;  // of a weight

double ram_tier::weight(double token) const {
    return std::exp2((token - epoch_) / half_life_);
}

void ram_tier::begin_layer(int layer, int64_t n_tokens) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (layer <= current_ || clock_ == 0) {
        clock_ += double(n_tokens);  // the first layer of a batch
        batch_++;
        long_prompt_ = false;  // until experts are taken for one
    }
    current_ = layer;
    if ((clock_ - epoch_) / half_life_ < MAX_EXPONENT) {
        return;
    }
    const double less = std::exp2((epoch_ - clock_) / half_life_);
    for (tier_layer & one : layers_) {
        for (tier_expert & expert : one.experts) {
            expert.heat *= less;
        }
    }
    epoch_ = clock_;
    victims_.clear();
}

void ram_tier::use(int layer, int expert, int64_t token, int64_t n_tokens) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (tier_expert * found = find(layer, expert)) {
        found->heat += weight(clock_ - double(n_tokens - token));
    }
}

void ram_tier::set_heat(int layer, int expert, double heat) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (tier_expert * found = find(layer, expert)) {
        found->heat = heat * weight(clock_);
    }
}

void ram_tier::set_budget(size_t nbytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    budget_ = nbytes;
    shrink();
    go_on_ahead();
    changed_.notify_all();
}

// In a long prompt every layer comes in its turn, and nearly every expert with it: the least worth is what
// has just been used. Else it is who is used least. What is the same in both orders by the other.
double ram_tier::worth(int layer, const tier_expert & expert, bool bulk) const {
    if (expert.on_device) {
        return -1e200;
    }
    const double tokens   = expert.heat / weight(clock_);
    const int    n_layers = int(layers_.size());
    const int    ahead    = (layer - current_ + n_layers) % n_layers;  // 0: all of it is done
    const double distance = ahead == 0 ? n_layers : ahead;
    return bulk ? tokens / (tokens + 1) - distance : tokens - 1e-9 * distance;
}

void ram_tier::list_victims(bool bulk) {
    victims_.clear();
    victims_bulk_  = bulk;
    victims_layer_ = current_;
    for (size_t layer = 0; layer < layers_.size(); layer++) {
        const std::vector<tier_expert> & experts = layers_[layer].experts;
        for (size_t i = 0; i < experts.size(); i++) {
            if (experts[i].is == THERE && experts[i].n_taken == 0) {
                victims_.push_back({ int32_t(layer), int32_t(i), experts[i].heat, worth(int(layer), experts[i], bulk) });
            }
        }
    }
    const auto by_worth = [](const victim & a, const victim & b) { return a.worth < b.worth; };
    if (victims_.size() > N_LISTED) {
        std::nth_element(victims_.begin(), victims_.begin() + N_LISTED, victims_.end(), by_worth);
        victims_.resize(N_LISTED);
    }
    std::sort(victims_.begin(), victims_.end(), [&](const victim & a, const victim & b) { return by_worth(b, a); });
}

// The least needed, if it is worth less than `below`.
bool ram_tier::next_victim(bool bulk, double below, victim & found) {
    bool fresh = false;
    if (bulk != victims_bulk_ || (bulk && victims_layer_ != current_)) {
        victims_.clear();
    }
    for (;;) {
        if (victims_.empty()) {
            if (fresh) {
                return false;
            }
            list_victims(bulk);
            fresh = true;
            if (victims_.empty()) {
                return false;
            }
        }
        found                   = victims_.back();
        const tier_expert & one = layers_[found.layer].experts[found.expert];
        if (one.is != THERE || one.n_taken > 0 || one.heat != found.heat) {
            victims_.pop_back();  // much has happened since
            continue;
        }
        if (found.worth >= below) {
            return false;
        }
        victims_.pop_back();
        return true;
    }
}

void ram_tier::drop(int layer, int expert) {
    tier_layer & from = layers_[layer];
    for (const tier_part & part : from.part) {
        memory_.give_back(start(part, expert), pages(part));
    }
    from.experts[expert].is = ABSENT;
    std::fill(from.experts[expert].arrived, from.experts[expert].arrived + N_PARTS, false);
    resident_nbytes_ -= from.nbytes;
    n_resident_--;
}

// The victim's pages, where they are as many.
void ram_tier::take_pages(const victim & from, int layer, int expert) {
    tier_layer & old = layers_[from.layer];
    tier_layer & to  = layers_[layer];
    for (int part = 0; part < N_PARTS; part++) {
        if (pages(old.part[part]) != pages(to.part[part])) {
            return;
        }
    }
    for (int part = 0; part < N_PARTS; part++) {
        memory_.move(start(old.part[part], from.expert), start(to.part[part], expert), pages(to.part[part]));
    }
}

bool ram_tier::make_room(int layer, int expert, bool bulk, double below) {
    const size_t nbytes = layers_[layer].nbytes;
    victim       found;
    while (resident_nbytes_ + nbytes > budget_) {
        if (nbytes > budget_ || !next_victim(bulk, below, found)) {
            return false;
        }
        if (resident_nbytes_ - layers_[found.layer].nbytes + nbytes <= budget_) {
            take_pages(found, layer, expert);
        }
        drop(found.layer, found.expert);  // what wasn't moved goes
    }
    return true;
}

void ram_tier::shrink() {
    victim found;
    while (resident_nbytes_ > budget_ && next_victim(long_prompt_, 1e300, found)) {
        drop(found.layer, found.expert);
    }
}

}  // namespace hot
