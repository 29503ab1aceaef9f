// What a product will need next is read into the second-level cache while it computes: arithmetic leaves the memory idle.
#pragma once

#include <cstdint>

namespace tokenworks::cpu {

// One thread's list of memory that it will read soon.
class Ahead {
  public:
    virtual ~Ahead() = default;

    int64_t bytes() const { return bytes_; }  // of all of it

    // The next piece, of at most so many bytes: for a kernel to begin reading while it computes. 0 bytes: there is no more.
    struct Piece {
        const uint8_t* data;
        int64_t bytes;
    };
    Piece take(int64_t most_bytes);

  protected:
    virtual Piece next() = 0;
    int64_t bytes_ = 0;

  private:
    Piece piece_{nullptr, 0};
};

}  // namespace tokenworks::cpu
