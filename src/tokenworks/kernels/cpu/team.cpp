#include "team.h"

#include <chrono>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tokenworks::cpu {
namespace {

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Waits for `word` to leave `old`: watching it while the wait is likely to be short, then asleep.
void await_change(const std::atomic<uint32_t>& word, uint32_t old, std::chrono::microseconds watch) {
    const auto until = std::chrono::steady_clock::now() + watch;
    do {
        for (int i = 0; i < 64; i++) {
            if (word.load(std::memory_order_acquire) != old) return;
            pause();
        }
    } while (std::chrono::steady_clock::now() < until);
    while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

// Longer than a step's serial parts; short against a time slice, in case the other thread has lost its CPU.
constexpr std::chrono::microseconds barrier_watch{100};
// About the time between two steps of a busy engine; an idle one sleeps after it.
constexpr std::chrono::microseconds idle_watch{200};

#ifdef __linux__
std::vector<int> allowed_cpus() {
    std::vector<int> cpus;
    cpu_set_t set;
    if (pthread_getaffinity_np(pthread_self(), sizeof set, &set) == 0)
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    return cpus;
}

void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

// Pins the calling thread for a run; other work of that thread may go where it likes.
class PinnedCaller {
  public:
    PinnedCaller(const std::vector<int>& cpus, int threads) : pinned_(threads > 1 && !cpus.empty()) {
        if (!pinned_) return;
        pthread_getaffinity_np(pthread_self(), sizeof before_, &before_);
        pin(cpus[0]);
    }
    ~PinnedCaller() {
        if (pinned_) pthread_setaffinity_np(pthread_self(), sizeof before_, &before_);
    }

  private:
    bool pinned_;
    cpu_set_t before_;
};
#else
std::vector<int> allowed_cpus() { return {}; }
void pin(int) {}
struct PinnedCaller {
    PinnedCaller(const std::vector<int>&, int) {}
};
#endif

}  // namespace

int Share::take() { return team->next_.fetch_add(1, std::memory_order_relaxed); }

void Share::barrier() {
    if (parts == 1) {
        team->next_.store(0, std::memory_order_relaxed);
        return;
    }
    const uint32_t phase = team->phase_.load(std::memory_order_relaxed);
    if (team->arrived_.fetch_add(1, std::memory_order_acq_rel) == parts - 1) {
        team->arrived_.store(0, std::memory_order_relaxed);
        team->next_.store(0, std::memory_order_relaxed);
        team->phase_.store(phase + 1, std::memory_order_release);
        team->phase_.notify_all();
    } else {
        await_change(team->phase_, phase, barrier_watch);
    }
}

Team::Team(int threads) : size_(threads), turns_(std::make_unique<Turn[]>(static_cast<size_t>(threads))) {
    // With as many threads as CPUs, two on one CPU would leave another idle for a scheduler's tick or more. With fewer,
    // the system places them better than we could: it knows what else runs.
    std::vector<int> cpus = allowed_cpus();
    if (threads > 1 && static_cast<int>(cpus.size()) == threads) cpus_ = cpus;
    for (int part = 1; part < threads; part++) threads_.emplace_back([this, part] { work(part); });
}

Team::~Team() {
    stop_ = true;
    call(1, size_);
    for (std::thread& thread : threads_) thread.join();
}

void Team::call(int begin, int end) {
    for (int part = begin; part < end; part++) {
        turns_[static_cast<size_t>(part)].number.fetch_add(1, std::memory_order_release);
        turns_[static_cast<size_t>(part)].number.notify_one();
    }
}

void Team::run(int threads, Job job, void* context) {
    PinnedCaller pinned(cpus_, threads);
    job_ = job;
    context_ = context;
    threads_now_ = threads;
    next_.store(0, std::memory_order_relaxed);
    call(1, threads);
    Share share{0, threads, this};
    job(context, share);
    share.barrier();
}

void Team::work(int part) {
    if (!cpus_.empty()) pin(cpus_[static_cast<size_t>(part)]);
    uint32_t seen = 0;
    for (;;) {
        await_change(turns_[static_cast<size_t>(part)].number, seen, idle_watch);
        seen++;
        if (stop_) return;
        Share share{part, threads_now_, this};
        job_(context_, share);
        share.barrier();
    }
}

}  // namespace tokenworks::cpu
