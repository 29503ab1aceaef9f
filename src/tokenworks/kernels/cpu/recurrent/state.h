// What the recurrent kernels share: the way of a state through a step, and what a head makes of its time steps.
#pragma once

#include "../functions.h"
#include "../kernels.h"

namespace tokenworks::cpu {
namespace {

constexpr int chunk = 16;  // rows whose inputs are brought together at a time; results do not depend on it

// Calls body(state, first_row, rows) for `floats` of a sequence's state, those from `offset` on: for up to `chunk` rows
// after the other, with the state of the row before. Then the state is where the step wants it.
template <typename Body>
INLINE void along_sequence(const States& states, int s, int64_t offset, int64_t floats, const Body& body) {
    const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
    const int last = states.write_starts[s + 1] - 1;
    float* state = states.slot(states.slots[last]) + offset;  // worked on in place
    const int32_t begin = states.begin[s];
    if (begin < 0)
        __builtin_memset(state, 0, bytes);
    else if (begin != states.slots[last])
        __builtin_memcpy(state, states.slot(begin) + offset, bytes);
    int row = states.row_starts[s];
    for (int w = states.write_starts[s]; w <= last; w++) {
        for (const int end = states.rows[w] + 1; row < end;) {
            const int rows = end - row < chunk ? end - row : chunk;
            body(state, row, rows);
            row += rows;
        }
        if (w < last) __builtin_memcpy(states.slot(states.slots[w]) + offset, state, bytes);
    }
}

// Of some rows, for one head: how far each goes, softplus(steps + bias) within a range, and what is kept of the state,
// exp(decay * step).
INLINE void time_steps(const Columns& steps, int head, int first, int rows, float bias, float least, float most,
                       float decay, float* step, float* keep) {
    float raw[chunk] = {};
    for (int t = 0; t < rows; t++) raw[t] = steps.row(first + t)[head] + bias;
    for (int t = 0; t < chunk; t += lanes) {
        const Floats now = smaller(larger(softplus(load(raw + t)), all(least)), all(most));
        store(step + t, now);
        store(keep + t, exponential(now * decay));
    }
}

// Memory of one call, freed when it returns: a number of floats, on a cache line.
#define SCRATCH(count) static_cast<float*>(__builtin_alloca_with_align(static_cast<size_t>(count) * sizeof(float), 512))

}  // namespace
}  // namespace tokenworks::cpu
