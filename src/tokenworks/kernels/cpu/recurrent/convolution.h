// short_convolution: threads share the columns.
#pragma once

#include "state.h"

namespace tokenworks::cpu {
namespace {

constexpr int unit = 16;  // columns that one thread has together: a cache line

// Row `row` of x, or of the state before the sequence's first row; null where there is none.
INLINE const float* seen_row(const ShortConvolutionArgs& args, int s, int row) {
    const States& states = args.states;
    const int before = states.row_starts[s] - row;  // rows before the first one
    if (before <= 0) return args.x.row(row);
    if (states.begin[s] < 0) return nullptr;
    return states.slot(states.begin[s]) + int64_t{args.kernel - 1 - before} * args.width;
}

void short_convolution(const ShortConvolutionArgs& args, Share& share) {
    const Range units = share.rows((args.width + unit - 1) / unit);
    const int from = units.begin * unit, to = units.end * unit < args.width ? units.end * unit : args.width;
    if (from >= to) return;
    const States& states = args.states;
    const int kernel = args.kernel;
    const float** seen = static_cast<const float**>(__builtin_alloca(static_cast<size_t>(kernel) * sizeof(float*)));
    for (int s = 0; s < states.sequences; s++) {
        for (int row = states.row_starts[s]; row < states.row_starts[s + 1]; row++) {
            for (int i = 0; i < kernel; i++) seen[i] = seen_row(args, s, row - kernel + 1 + i);
            float* out = args.output.row(row);
            each(to - from, [&](int at, auto get, auto put) {
                const int c = from + at;
                Floats total = args.bias ? get(args.bias + c) : Floats{};
                for (int i = 0; i < kernel; i++)
                    if (seen[i]) total = multiply_add(get(args.weight + int64_t{i} * args.width + c), get(seen[i] + c), total);
                put(out + c, args.activated ? silu(total) : total);
            });
        }
        // The last one may lie over the state that the sequence began with: rows move up, so the first one first.
        for (int w = states.write_starts[s]; w < states.write_starts[s + 1]; w++)
            for (int i = 0; i < kernel - 1; i++) {
                float* to_row = states.slot(states.slots[w]) + int64_t{i} * args.width;
                const float* row = seen_row(args, s, states.rows[w] - kernel + 2 + i);
                const size_t bytes = static_cast<size_t>(to - from) * sizeof(float);
                if (row)
                    __builtin_memmove(to_row + from, row + from, bytes);
                else
                    __builtin_memset(to_row + from, 0, bytes);
            }
    }
}

}  // namespace
}  // namespace tokenworks::cpu
