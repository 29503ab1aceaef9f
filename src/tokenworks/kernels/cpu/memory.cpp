#include "memory.h"

#include <sys/mman.h>

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

}  // namespace tokenworks::cpu
