#include "ahead.h"

#include <algorithm>

namespace tokenworks::cpu {

Ahead::Piece Ahead::take(int64_t most_bytes) {
    if (piece_.bytes <= 0) piece_ = next();
    const Piece taken{piece_.data, std::min(piece_.bytes, most_bytes)};
    piece_.data += taken.bytes;
    piece_.bytes -= taken.bytes;
    return taken;
}

}  // namespace tokenworks::cpu
