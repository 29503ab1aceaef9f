// The threads that run a step together.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace tokenworks::cpu {

struct Range {
    int begin, end;
};

class Team;

// One thread's part in a parallel region. Every thread of the team calls the same kernel with its own Share.
struct Share {
    int part;   // 0 .. parts - 1
    int parts;  // threads in the team
    Team* team;

    // Contiguous even split of n rows. Row-wise kernels (a row's output needs that row's input only) all use this split,
    // so the executor needs no barrier between two of them.
    Range rows(int n) const {
        return {static_cast<int>(static_cast<int64_t>(n) * part / parts),
                static_cast<int>(static_cast<int64_t>(n) * (part + 1) / parts)};
    }

    // The next number 0, 1, 2, ... that no thread has taken yet since the last barrier: for tasks of uneven length.
    int take();

    // Waits until all threads are here; what they wrote before is visible after. Starts take() from 0 again.
    void barrier();
};

// A fixed set of threads, pinned to distinct CPUs; the caller of run() is part 0. Between runs the others sleep.
class Team {
  public:
    using Job = void (*)(void* context, Share& share);

    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }
    void run(Job job, void* context);

    template <typename F>
    void run(F&& body) {
        run([](void* context, Share& share) { (*static_cast<std::remove_reference_t<F>*>(context))(share); }, &body);
    }

  private:
    friend struct Share;
    void work(int part);

    int size_;
    Job job_ = nullptr;
    void* context_ = nullptr;
    bool stop_ = false;
    std::vector<int> cpus_;  // where each part is pinned; empty: nowhere
    // Each on a cache line of its own: they are what the threads watch.
    alignas(64) std::atomic<uint32_t> generation_{0};  // runs begun
    alignas(64) std::atomic<uint32_t> phase_{0};       // barriers passed
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> next_{0};
    std::vector<std::thread> threads_;
};

}  // namespace tokenworks::cpu
