// selective_scan: threads share (sequence, head). A tile of the state stays in registers over a chunk of rows.
#pragma once

#include "state.h"

namespace tokenworks::cpu {
namespace {

constexpr int tile = lanes == 16 ? 16 : 8;  // rows of the state that are in registers

// A chunk's inputs for one head, brought together: x * step, b, c; and its outputs.
struct ScanChunk {
    int rows;
    float step[chunk], keep[chunk];
    float *moved, *out;  // [rows, head_size]
    float *b, *c;        // [rows, state_size]
};

// `count` rows of the state, a register's worth of columns: state [count] from row to row `stride`.
template <int count, typename Get, typename Put>
INLINE void scan_tile(float* state, int stride, const ScanChunk& in, int column, int row, int state_size, Get get, Put put) {
    Floats h[count];
    for (int i = 0; i < count; i++) h[i] = get(state + int64_t{i} * stride);
    for (int t = 0; t < in.rows; t++) {
        const Floats keep = all(in.keep[t]), moved = get(in.moved + int64_t{t} * stride + column);
        const float *b = in.b + int64_t{t} * state_size + row, *c = in.c + int64_t{t} * state_size + row;
        Floats even{}, odd{};
        for (int i = 0; i < count; i++) {
            h[i] = multiply_add(all(b[i]), moved, h[i] * keep);
            Floats& total = i & 1 ? odd : even;
            total = multiply_add(all(c[i]), h[i], total);
        }
        float* out = in.out + int64_t{t} * stride + column;
        put(out, get(out) + (even + odd));
    }
    for (int i = 0; i < count; i++) put(state + int64_t{i} * stride, h[i]);
}

INLINE void gather(float* to, const Columns& from, int first, int rows, int column, int width) {
    for (int t = 0; t < rows; t++)
        __builtin_memcpy(to + int64_t{t} * width, from.row(first + t) + column, static_cast<size_t>(width) * sizeof(float));
}

void selective_scan(const SelectiveScanArgs& args, Share& share) {
    const int size = args.head_size, width = args.state_size, heads = args.heads;
    const int64_t floats = int64_t{size} * width;
    ScanChunk in{};
    in.moved = SCRATCH(chunk * size);
    in.out = SCRATCH(chunk * size);
    in.b = SCRATCH(chunk * width);
    in.c = SCRATCH(chunk * width);
    for (int task; (task = share.take()) < args.states.sequences * heads;) {
        const int s = task / heads, head = task % heads, group = head / (heads / args.groups);
        along_sequence(args.states, s, head * floats, floats, [&](float* state, int first, int rows) {
            in.rows = rows;
            time_steps(args.steps, head, first, rows, args.step_bias[head], args.least_step, args.most_step,
                       args.decay[head], in.step, in.keep);
            gather(in.b, args.b, first, rows, group * width, width);
            gather(in.c, args.c, first, rows, group * width, width);
            const Floats skip = all(args.skip[head]);
            for (int t = 0; t < rows; t++) {
                const float* x = args.x.row(first + t) + head * size;
                each(size, [&](int at, auto get, auto put) {
                    put(in.moved + t * size + at, get(x + at) * in.step[t]);
                    put(in.out + t * size + at, get(x + at) * skip);
                });
            }
            each(size, [&](int at, auto get, auto put) {
                int n = 0;
                for (; n + tile <= width; n += tile)
                    scan_tile<tile>(state + int64_t{n} * size + at, size, in, at, n, width, get, put);
                for (; n < width; n++) scan_tile<1>(state + int64_t{n} * size + at, size, in, at, n, width, get, put);
            });
            for (int t = 0; t < rows; t++)
                __builtin_memcpy(args.output.row(first + t) + head * size, in.out + t * size,
                                 static_cast<size_t>(size) * sizeof(float));
        });
    }
}

}  // namespace
}  // namespace tokenworks::cpu
