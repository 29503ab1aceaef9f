// Memory straight from the system: zeroed, page-aligned, and taken only when touched.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokenworks::cpu {

class Region {
  public:
    Region() = default;
    // With `large_pages` the system may back it with large pages: faster to walk, coarser to take.
    // Throws std::bad_alloc.
    Region(size_t bytes, bool large_pages);
    ~Region();
    Region(Region&& other) noexcept;
    Region& operator=(Region&& other) noexcept;

    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// Tells damaged bytes from whole ones, at the speed of memory; no defence against an enemy.
uint64_t checksum(const uint8_t* data, size_t bytes);

}  // namespace tokenworks::cpu
