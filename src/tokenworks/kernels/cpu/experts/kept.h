// Which experts stay in memory, of a model whose experts do not all fit: those used most, where a use counts half as much
// after `half_life` further choices. That is least frequently used with ageing: between the two, what was used last (a
// short half-life), and what was used most often (a long one). Pure: it decides, and store.h carries out.
#pragma once

#include <cstddef>
#include <set>
#include <utility>
#include <vector>

namespace tokenworks::cpu {

class KeptExperts {
  public:
    struct Move {
        int expert, slot, earlier;  // who had the slot before, or -1
    };

    // Experts are of one size, a slot holds one.
    KeptExperts(int experts, int slots, double half_life);

    // Some layer's step needs these, each named once. Those that are not kept get a slot: one that is free, or else that
    // of the least used which is not needed now. A step that needs many at once takes at most a quarter of the slots
    // away from others, so that a prompt, which needs all, leaves most of what is kept; who gets no slot stays outside.
    // Valid until the next call.
    const std::vector<Move>& choose(const std::vector<int>& needed);

    // From now on only the first `slots` count, of those there are. Experts in the others are no longer kept: returns
    // them.
    std::vector<int> limit(int slots);

    int slot(int expert) const { return slots_[static_cast<std::size_t>(expert)]; }  // -1: not kept
    int kept() const { return kept_; }  // they have the first slots

  private:
    using Rank = std::pair<double, int>;  // score, expert

    void use(int expert);

    double growth_, gain_ = 1.0;
    int limit_, kept_ = 0;
    std::vector<double> scores_;  // by expert: of a use t choices ago, growth_ to the power of -t, times gain_
    std::vector<int> slots_;      // by expert
    std::vector<int> experts_;    // by slot, of the first kept_
    std::set<Rank> order_;        // of the kept
    std::vector<Move> moves_;
    std::vector<char> needed_;  // by expert, while they are chosen
};

}  // namespace tokenworks::cpu
