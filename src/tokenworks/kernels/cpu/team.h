// The threads that run a step together.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
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

// A fixed set of threads, pinned to distinct CPUs; the caller of run() is part 0. Between runs the others sleep, and
// sleep on in runs of fewer threads.
class Team {
  public:
    using Job = void (*)(void* context, Share& share);

    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // On the first `threads` of them, 1 .. size(). A caller alone is pinned nowhere: it goes where there is room.
    void run(int threads, Job job, void* context);

    template <typename F>
    void run(int threads, F&& body) {
        run(threads, [](void* context, Share& share) { (*static_cast<std::remove_reference_t<F>*>(context))(share); },
            &body);
    }

  private:
    friend struct Share;
    // Each word on a cache line of its own: they are what the threads watch.
    struct alignas(64) Turn {
        std::atomic<uint32_t> number{0};  // runs that this thread was called to
    };
    void work(int part);
    void call(int begin, int end);  // those parts

    int size_, threads_now_ = 0;  // of the run under way
    Job job_ = nullptr;
    void* context_ = nullptr;
    bool stop_ = false;
    std::vector<int> cpus_;  // where each part is pinned; empty: nowhere
    std::unique_ptr<Turn[]> turns_;
    alignas(64) std::atomic<uint32_t> phase_{0};  // barriers passed
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> next_{0};
    std::vector<std::thread> threads_;
};

}  // namespace tokenworks::cpu
