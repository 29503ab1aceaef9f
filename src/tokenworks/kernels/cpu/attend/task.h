// What attention works on: tasks cut from a step, what their rows see, and what has been seen so far.
#pragma once

#include "../functions.h"
#include "../kernels.h"
#include "scratch.h"

namespace tokenworks::cpu {
namespace {

#define UNROLL _Pragma("GCC unroll 16")

constexpr int panels = segment / panel;
constexpr float log2_e = 1.44269504f;  // softmax is computed with powers of two
constexpr float lowest = -3.4e38f;     // a maximum over nothing; finite, so that differences with it are numbers

// One KV head of one sequence: where each position's K and V are.
struct Source {
    const AttendArgs* args;
    const int32_t* table;  // null: no cache, the rows themselves from first_row on
    int first_row;
    int kv_head;
};

// Consecutive query rows of one sequence, all query heads of one KV head.
struct Task {
    Source source;
    int row, rows;                // of the step
    int first_position;           // of `row`
    int positions;                // of the sequence
    int segment_begin, segment_end;  // what some row of it sees
};

struct Seen {
    int from, to;  // positions
};

// By row `row` of the step, at `position` of a sequence of `positions`.
INLINE Seen seen_at(const AttendArgs& args, int row, int position, int positions) {
    if (!args.cache.k) {
        if (!args.window) return {0, positions};
        return {position >= args.window ? position - args.window + 1 : 0,
                position + args.window < positions ? position + args.window : positions};
    }
    if (args.end) return {0, args.end};
    int from = args.begin;
    if (args.window) {
        const int first = args.chunked ? position / args.window * args.window : position - args.window + 1;
        from = first > from ? first : from;
    }
    return {from, args.ends ? args.ends[row] : position + 1};
}

// By row r of a task.
INLINE Seen seen_by(const Task& task, int r) {
    return seen_at(*task.source.args, task.row + r, task.first_position + r, task.positions);
}

INLINE int group_of(const AttendArgs& args) { return args.heads / args.kv_heads; }

// Columns of a head's V and of its result.
INLINE int value_size(const AttendArgs& args) { return args.latent ? args.latent : args.head_size; }

// Panels can be read in place when they lie whole in a block, and dimensions fill registers.
INLINE bool in_place(const AttendArgs& args) {
    return args.cache.k && args.cache.block_tokens % panel == 0 && args.head_size % panel == 0;
}

// What has been seen so far, for each query row: attention's numerator, [wide], and softmax's maximum and sum.
struct Partial {
    float *mixed, *maximum, *sum;
};

INLINE Partial partial_at(float* memory, int rows, int wide) {
    return {memory, memory + int64_t{rows} * wide, memory + int64_t{rows} * wide + rows};
}

// Row r of `total` takes in row s of `part`.
INLINE void merge(const Partial& total, int r, const Partial& part, int s, int wide) {
    const float maximum = total.maximum[r] > part.maximum[s] ? total.maximum[r] : part.maximum[s];
    const Floats old = power_of_two(all(total.maximum[r] - maximum));
    const Floats fresh = power_of_two(all(part.maximum[s] - maximum));
    float* to = total.mixed + int64_t{r} * wide;
    const float* from = part.mixed + int64_t{s} * wide;
    for (int d = 0; d < wide; d += lanes) store(to + d, multiply_add(load(to + d), old, load(from + d) * fresh));
    total.maximum[r] = maximum;
    total.sum[r] = total.sum[r] * old[0] + part.sum[s] * fresh[0];
}

// `total` becomes row s of `part`.
INLINE void begin(const Partial& total, int r, const Partial& part, int s, int wide) {
    __builtin_memcpy(total.mixed + int64_t{r} * wide, part.mixed + int64_t{s} * wide, static_cast<size_t>(wide) * 4);
    total.maximum[r] = part.maximum[s];
    total.sum[r] = part.sum[s];
}

INLINE Ints lane_numbers() {
    Ints lane;
    for (int i = 0; i < lanes; i++) lane[i] = i;
    return lane;
}

// Scores of positions first, first + 1, ...: those not seen become -infinity.
INLINE Floats masked(Floats scores, int first, Seen seen) {
    const Ints position = lane_numbers() + first;
    return (position >= seen.from) & (position < seen.to) ? scores : all(-__builtin_inff());
}

// Calls body.operator()<R>(row) for groups of R rows, R as large as can be.
template <int R, typename Body>
INLINE void last_rows(int row, int rest, const Body& body) {
    if constexpr (R > 0) {
        if (rest == R) return body.template operator()<R>(row);
        last_rows<R - 1>(row, rest, body);
    }
}

template <int most, typename Body>
INLINE void by_rows(int rows, const Body& body) {
    int row = 0;
    for (; row + most <= rows; row += most) body.template operator()<most>(row);
    last_rows<most - 1>(row, rows - row, body);
}

}  // namespace
}  // namespace tokenworks::cpu
