#include "kept.h"

#include <algorithm>
#include <cmath>

namespace tokenworks::cpu {

KeptExperts::KeptExperts(int experts, int slots, double half_life)
    : growth_(std::exp2(1.0 / half_life)),
      limit_(slots),
      scores_(static_cast<size_t>(experts), 0.0),
      slots_(static_cast<size_t>(experts), -1),
      experts_(static_cast<size_t>(slots)),
      needed_(static_cast<size_t>(experts), 0) {}

const std::vector<KeptExperts::Move>& KeptExperts::choose(const std::vector<int>& needed) {
    moves_.clear();
    // A new use counts more instead of all earlier ones less, so that only those used change their place in the order.
    gain_ *= growth_;
    if (gain_ > 1e100) {
        std::set<Rank> smaller;
        for (double& score : scores_) score /= gain_;
        for (const Rank& rank : order_) smaller.insert({scores_[static_cast<size_t>(rank.second)], rank.second});
        order_.swap(smaller);
        gain_ = 1.0;
    }
    for (const int expert : needed) use(expert);
    for (const int expert : needed) needed_[static_cast<size_t>(expert)] = 1;
    int left = std::max(1, limit_ / 4);
    auto coldest = order_.begin();
    for (const int expert : needed) {
        if (slot(expert) >= 0) continue;
        int to = kept_, earlier = -1;
        if (kept_ < limit_) {
            kept_++;
        } else {
            while (coldest != order_.end() && needed_[static_cast<size_t>(coldest->second)]) ++coldest;
            if (coldest == order_.end() || left-- == 0) break;
            earlier = coldest->second;
            coldest = order_.erase(coldest);
            to = std::exchange(slots_[static_cast<size_t>(earlier)], -1);
        }
        slots_[static_cast<size_t>(expert)] = to;
        experts_[static_cast<size_t>(to)] = expert;
        moves_.push_back({expert, to, earlier});
    }
    for (const Move& move : moves_) order_.insert({scores_[static_cast<size_t>(move.expert)], move.expert});
    for (const int expert : needed) needed_[static_cast<size_t>(expert)] = 0;
    return moves_;
}

std::vector<int> KeptExperts::limit(int slots) {
    limit_ = std::clamp(slots, 0, static_cast<int>(experts_.size()));
    std::vector<int> gone;
    for (int s = limit_; s < kept_; s++) {
        const int expert = experts_[static_cast<size_t>(s)];
        order_.erase({scores_[static_cast<size_t>(expert)], expert});
        slots_[static_cast<size_t>(expert)] = -1;
        gone.push_back(expert);
    }
    kept_ = std::min(kept_, limit_);
    return gone;
}

void KeptExperts::use(int expert) {
    double& score = scores_[static_cast<size_t>(expert)];
    const bool kept = slot(expert) >= 0;
    if (kept) order_.erase({score, expert});
    score += gain_;
    if (kept) order_.insert({score, expert});
}

}  // namespace tokenworks::cpu
