// The softmax of a segment whose products are whole numbers.
#pragma once

#include "byte_tile.h"

namespace tokenworks::cpu {
namespace {

constexpr float log2_largest_weight = 14.999956f;  // of 32767

INLINE void store_low_halves(int16_t* to, Ints v) {
    typedef int16_t Shorts __attribute__((vector_size(lanes * 2)));
    const Shorts low = __builtin_convertvector(v, Shorts);
    __builtin_memcpy(to, &low, sizeof low);
}

// The scales of V's positions as they were written, log2, become what softmax's own sum takes out again; finite whatever
// an unused place holds: 0 times it is 0.
INLINE void invert_scales(const float* v_log, int from, int to, float* v_inverse) {
    for (int at = from; at < whole_panels(to); at += lanes)
        store(v_inverse + at, power_of_two(smaller(-load(v_log + at), all(126.0f))));
}

// A row's scores of positions [from, end) of the segment at `start`, score(at) of a register's worth, become weights; also
// for the rest of its panels, where they become 0. logs: room for a row of floats.
template <typename Score>
INLINE void soften_bytes(const AttendArgs& args, const Score& score, const float* v_log, const float* v_inverse, Seen seen,
                         int start, int from, int end, float* logs, int16_t* weights, float* maximum, float* total) {
    Floats high = all(lowest);
    const int stop = whole_panels(end);
    for (int at = from; at < stop; at += lanes) {
        Floats s = score(at);
        if (args.softcap != 0.0f) s = args.softcap * log2_e * hyperbolic_tangent(s / args.softcap);
        s = s + load(v_log + at);
        const int first = start + at;
        if (first < seen.from || first + lanes > seen.to) s = masked(s, first, seen);
        store(logs + at, s);
        high = larger(s, high);
    }
    const float top = largest(high) - log2_largest_weight;
    constexpr int columns = panel / lanes;
    Floats sums[columns] = {};  // as one register of 16 lanes, so that its order does not depend on their number
    for (int at = from; at < stop; at += panel)
        UNROLL for (int c = 0; c < columns; c++) {
            const Floats weight = power_of_two(load(logs + at + c * lanes) - top);
            sums[c] = multiply_add(weight, load(v_inverse + at + c * lanes), sums[c]);
            store_low_halves(weights + at + c * lanes, reinterpret_cast<Ints>(weight + all(0x1.8p23f)));
        }
    UNROLL for (int half = columns / 2; half; half /= 2)
        for (int c = 0; c < half; c++) sums[c] = sums[c] + sums[c + half];
    *maximum = top;
    *total = sum(sums[0]);
}

}  // namespace
}  // namespace tokenworks::cpu
