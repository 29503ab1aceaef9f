#include "memory.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <utility>

namespace tokenworks::cpu {

Region::Region(size_t bytes, bool large_pages) : size_(bytes) {
    if (bytes == 0) return;
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    // Without this the cache would grow by 2 MiB at every touch where the system hands out large pages unasked.
    madvise(data, bytes, large_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
    (void)large_pages;
#endif
    data_ = static_cast<uint8_t*>(data);
}

Region::~Region() {
    if (data_) munmap(data_, size_);
}

Region::Region(Region&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Region& Region::operator=(Region&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

// Fletcher's sums (1982), of 64-bit words and eight side by side: of the words, and of those sums, which knows their order.
uint64_t checksum(const uint8_t* data, size_t bytes) {
    constexpr int lanes = 8;
    uint64_t sums[lanes] = {}, sums_of_sums[lanes] = {};
    const auto add = [&](const uint8_t* from) {
        for (int i = 0; i < lanes; i++) {
            uint64_t word;
            std::memcpy(&word, from + i * sizeof word, sizeof word);
            sums[i] += word;
            sums_of_sums[i] += sums[i];
        }
    };
    constexpr size_t line = lanes * sizeof(uint64_t);
    size_t at = 0;
    for (; at + line <= bytes; at += line) add(data + at);
    if (at < bytes) {
        uint8_t last[line] = {};
        std::memcpy(last, data + at, bytes - at);
        add(last);
    }
    constexpr uint64_t odd = 0x9e3779b97f4a7c15;
    uint64_t result = bytes;
    for (int i = 0; i < lanes; i++) {
        result = (result ^ sums[i]) * odd;
        result = (result ^ sums_of_sums[i] ^ result >> 32) * odd;
    }
    return result;
}

}  // namespace tokenworks::cpu
