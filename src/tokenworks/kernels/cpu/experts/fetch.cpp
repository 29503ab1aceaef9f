// Experts of a model that is larger than memory lie in a mapped file, whose pages the system keeps or drops. As soon as
// a layer's experts are chosen, it is told to read those that it has dropped: all at once, while the first are computed.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "experts.h"

namespace tokenworks::cpu {
namespace {

void fetch(const PackedMatrix& matrix, ExpertReads& reads) {
    static const int64_t page = sysconf(_SC_PAGESIZE);
    constexpr int64_t at_once = 4096;  // pages
    unsigned char resident[at_once];
    const auto address = reinterpret_cast<uintptr_t>(matrix.data), begin = address / page * page;
    const int64_t bytes = static_cast<int64_t>(address - begin) + matrix.bytes();
    int64_t found = 0, pages = (bytes + page - 1) / page;
    for (int64_t at = 0; at < pages; at += at_once) {
        const int64_t count = std::min(at_once, pages - at);
        const size_t length = static_cast<size_t>(std::min(count * page, bytes - at * page));
        void* from = reinterpret_cast<void*>(begin + at * page);
#if defined(__linux__)
        if (mincore(from, length, resident) != 0) return;
        const int64_t here = std::count_if(resident, resident + count, [](unsigned char p) { return p & 1; });
        if (here < count) madvise(from, length, MADV_WILLNEED);
        found += here;
#endif
    }
    reads.bytes.fetch_add(pages * page, std::memory_order_relaxed);
    reads.resident_bytes.fetch_add(found * page, std::memory_order_relaxed);
}

}  // namespace

void fetch_experts(const Mixture& mixture, const int32_t* starts, Share& share) {
    const int experts = static_cast<int>(mixture.outwards.size()), maps = mixture.gated ? 2 : 1;
    int used = 0;
    for (int e = 0; e < experts; e++) {
        if (starts[e + 1] == starts[e] || used++ % share.parts != share.part) continue;
        for (int i = 0; i < maps; i++) fetch(*mixture.inwards[static_cast<size_t>(e * maps + i)].weight, *mixture.reads);
        fetch(*mixture.outwards[static_cast<size_t>(e)].weight, *mixture.reads);
    }
}

}  // namespace tokenworks::cpu
