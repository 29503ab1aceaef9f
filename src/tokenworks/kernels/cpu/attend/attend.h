// Attention with an online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867; Dao 2022, arXiv 2205.14135) that does
// not depend on how the work is cut: each segment of 128 positions has its own maximum, sum and mixture of values, and
// segments are merged in order. Positions that a query does not see count with weight exactly 0, so a query's result is
// the same bits whichever queries are computed beside it and whichever thread computes a segment.
#pragma once

#include "../functions.h"
#include "tile.h"

namespace tokenworks::cpu {
namespace {

constexpr float lowest = -3.4e38f;  // a maximum over nothing; finite, so that differences with it are numbers

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

INLINE Seen seen_at(const AttendArgs& args, int position, int positions) {
    if (!args.cache.k) return {0, positions};
    const int from = args.window && position >= args.window ? position - args.window + 1 : 0;
    return {from, position + 1};
}

INLINE int group_of(const AttendArgs& args) { return args.heads / args.kv_heads; }

// What has been seen so far, for each query row: attention's numerator, [wide], and softmax's maximum and sum.
struct Partial {
    float *mixed, *maximum, *sum;
};

INLINE Partial partial_at(float* memory, int rows, int wide) {
    return {memory, memory + int64_t{rows} * wide, memory + int64_t{rows} * wide + rows};
}

// One thread's memory.
struct Scratch {
    float *q, *k, *v, *scores;
    Partial part, total;
};

INLINE Scratch scratch_of(const AttendArgs& args, int part, int rows) {
    const int wide = whole_panels(args.head_size);
    Scratch scratch;
    scratch.k = args.scratch + part * attend_thread_floats(args.heads, args.kv_heads, args.head_size);
    scratch.v = scratch.k + int64_t{segment} * wide;
    scratch.scores = scratch.v + int64_t{segment} * wide;
    scratch.q = scratch.scores + int64_t{rows} * segment;
    float* partials = scratch.q + int64_t{rows} * args.head_size;
    scratch.part = partial_at(partials, rows, wide);
    scratch.total = partial_at(partials + partial_floats(rows, wide), rows, wide);
    return scratch;
}

// A row's scores of positions [from, to) of the segment at `start` become weights; also for the rest of its panels,
// where they become 0.
void soften(const AttendArgs& args, float* scores, Seen seen, int start, int from, int to, float* maximum, float* total) {
    Ints lane;
    for (int i = 0; i < lanes; i++) lane[i] = i;
    const int begin = from / panel * panel;
    Floats high = all(lowest);
    for (int at = begin; at < to; at += lanes) {
        Floats s = load(scores + at);
        if (args.softcap != 0.0f) s = args.softcap * hyperbolic_tangent(s / args.softcap);
        const int first = start + at;
        if (first < seen.from || first + lanes > seen.to) {
            const Ints position = lane + first;
            s = (position >= seen.from) & (position < seen.to) ? s : all(-__builtin_inff());
        }
        store(scores + at, s);
        high = larger(high, s);
    }
    *maximum = largest(high);
    Floats sums{};
    for (int at = begin; at < to; at += lanes) {
        const Floats weight = exponential(load(scores + at) - *maximum);
        store(scores + at, weight);
        sums = sums + weight;
    }
    *total = sum(sums);
}

template <typename T>
void attend_panels(const AttendArgs& args, const Task& task, const Panels<T>& panels_, int start, int from, int to,
                   const Scratch& scratch, const Partial& part) {
    const int group = group_of(args), rows = task.rows * group, wide = whole_panels(args.head_size);
    all_scores(scratch.q, rows, panels_, from, to, args.head_size, scratch.scores);
    for (int r = 0; r < rows; r++) {
        const Seen seen = seen_at(args, task.first_position + r / group, task.positions);
        soften(args, scratch.scores + r * segment, seen, start, from, to, part.maximum + r, part.sum + r);
    }
    all_mixed(scratch.scores, rows, panels_, from, to, wide, part.mixed);
}

// What the task's rows see in one segment.
void attend_segment(const AttendArgs& args, const Task& task, int number, const Scratch& scratch, const Partial& part) {
    const int start = number * segment;
    const int first = seen_at(args, task.first_position, task.positions).from - start;
    const int last = seen_at(args, task.first_position + task.rows - 1, task.positions).to - start;
    const int from = first > 0 ? first / panel * panel : 0, to = last < segment ? last : segment;
    // Reading halves in place converts them once for each few rows; copying converts once, and stores.
    const bool few = task.rows * group_of(args) <= rows_at_once;
    if (in_place(args) && !args.cache.half)
        attend_panels(args, task, panels_in_place<float>(task.source, start, from, to), start, from, to, scratch, part);
    else if (in_place(args) && few)
        attend_panels(args, task, panels_in_place<uint16_t>(task.source, start, from, to), start, from, to, scratch,
                      part);
    else
        attend_panels(args, task, panels_copied(task.source, start, from, to, scratch.k, scratch.v), start, from, to,
                      scratch, part);
}

// Row r of `total` takes in row s of `part`.
INLINE void merge(const Partial& total, int r, const Partial& part, int s, int wide) {
    const float maximum = total.maximum[r] > part.maximum[s] ? total.maximum[r] : part.maximum[s];
    const Floats old = exponential(all(total.maximum[r] - maximum)), fresh = exponential(all(part.maximum[s] - maximum));
    float* to = total.mixed + int64_t{r} * wide;
    const float* from = part.mixed + int64_t{s} * wide;
    for (int d = 0; d < wide; d += lanes) store(to + d, multiply_add(load(to + d), old, load(from + d) * fresh));
    total.maximum[r] = maximum;
    total.sum[r] = total.sum[r] * old[0] + part.sum[s] * fresh[0];
}

INLINE void finish_row(const AttendArgs& args, const Partial& total, int r, int row, int head) {
    const float* mixed = total.mixed + int64_t{r} * whole_panels(args.head_size);
    float* out = args.output.row(row) + head * args.head_size;
    const Floats share = all(1.0f / total.sum[r]);
    each(args.head_size, [&](int at, auto get, auto put) { put(out + at, get(mixed + at) * share); });
}

void load_queries(const AttendArgs& args, const Task& task, float* q) {
    const int width = group_of(args) * args.head_size;
    for (int r = 0; r < task.rows; r++) {
        const float* from = args.q.row(task.row + r) + task.source.kv_head * width;
        each(width, [&](int at, auto get, auto put) { put(q + r * width + at, get(from + at) * args.scale); });
    }
}

// All the segments of a task, one after the other.
void attend_task(const AttendArgs& args, const Task& task, const Scratch& scratch) {
    const int group = group_of(args), rows = task.rows * group, wide = whole_panels(args.head_size);
    load_queries(args, task, scratch.q);
    attend_segment(args, task, task.segment_begin, scratch, scratch.total);
    for (int s = task.segment_begin + 1; s < task.segment_end; s++) {
        attend_segment(args, task, s, scratch, scratch.part);
        for (int r = 0; r < rows; r++) merge(scratch.total, r, scratch.part, r, wide);
    }
    for (int r = 0; r < rows; r++)
        finish_row(args, scratch.total, r, task.row + r / group, task.source.kv_head * group + r % group);
}

// Calls body(task) for every task of the step. The longest of a sequence come first: they are the last to finish.
template <typename Body>
INLINE void each_task(const AttendArgs& args, int rows_in_task, const Body& body) {
    for (int s = 0; s < args.sequences; s++) {
        const int begin = args.row_starts[s], end = args.row_starts[s + 1];
        const int32_t* table = args.cache.k ? args.block_tables + int64_t{s} * args.table_width : nullptr;
        const int origin = args.cache.k ? args.positions[begin] : 0, positions = origin + end - begin;
        for (int block = (end - begin - 1) / rows_in_task; block >= 0; block--) {
            const int row = begin + block * rows_in_task, left = end - row;
            const int rows = left < rows_in_task ? left : rows_in_task, first = origin + row - begin;
            const int segment_begin = seen_at(args, first, positions).from / segment;
            const int segment_end = (seen_at(args, first + rows - 1, positions).to + segment - 1) / segment;
            for (int head = 0; head < args.kv_heads; head++)
                body(Task{{&args, table, begin, head}, row, rows, first, positions, segment_begin, segment_end});
        }
    }
}

// Few queries, so that whole tasks would not keep all threads busy: each (task, segment) is a piece of work by itself.
// The partial results of a query row and head lie together, segment after segment.
void attend_split(const AttendArgs& args, Share& share, int rows_in_task, int segments, const Scratch& scratch) {
    const int group = group_of(args), wide = whole_panels(args.head_size);
    float* partials = args.scratch + share.parts * attend_thread_floats(args.heads, args.kv_heads, args.head_size);
    const auto slot = [&](int row, int head, int s) {
        return partials + ((int64_t{row} * args.heads + head) * segments + s) * partial_floats(1, wide);
    };
    int next = share.take(), number = 0;
    each_task(args, rows_in_task, [&](const Task& task) {
        bool loaded = false;
        for (int s = task.segment_begin; s < task.segment_end; s++) {
            if (number++ != next) continue;
            if (!loaded) load_queries(args, task, scratch.q);
            loaded = true;
            attend_segment(args, task, s, scratch, scratch.part);
            for (int r = 0; r < task.rows * group; r++) {
                const Partial to =
                    partial_at(slot(task.row + r / group, task.source.kv_head * group + r % group, s), 1, wide);
                __builtin_memcpy(to.mixed, scratch.part.mixed + int64_t{r} * wide, static_cast<size_t>(wide) * 4);
                *to.maximum = scratch.part.maximum[r];
                *to.sum = scratch.part.sum[r];
            }
            next = share.take();
        }
    });
    share.barrier();
    number = 0;
    each_task(args, rows_in_task, [&](const Task& task) {
        for (int r = 0; r < task.rows * group; r++) {
            if (number++ % share.parts != share.part) continue;
            const int row = task.row + r / group, head = task.source.kv_head * group + r % group;
            const Partial total = partial_at(slot(row, head, task.segment_begin), 1, wide);
            for (int s = task.segment_begin + 1; s < task.segment_end; s++)
                merge(total, 0, partial_at(slot(row, head, s), 1, wide), 0, wide);
            finish_row(args, total, 0, row, head);
        }
    });
}

// Segments of the longest sequence.
int segments_of(const AttendArgs& args) {
    int positions = 0;
    for (int s = 0; s < args.sequences; s++) {
        const int last = args.row_starts[s + 1] - 1;
        const int here = args.cache.k ? args.positions[last] + 1 : args.row_starts[s + 1] - args.row_starts[s];
        positions = here > positions ? here : positions;
    }
    return (positions + segment - 1) / segment;
}

void attend(const AttendArgs& args, Share& share) {
    // Enough rows to make loading K and V cheap; enough pieces of work to go round.
    const int segments = segments_of(args), pieces = 8 * share.parts;
    int rows = attend_task_rows(args.heads, args.kv_heads);
    const bool few = args.rows * args.kv_heads < pieces * rows;
    const bool split = few && segments > 1 && int64_t{args.rows} * args.heads * segments <= args.partials;
    const int parts_of_task = split ? segments : 1;
    while (rows > 4 && args.rows * args.kv_heads * parts_of_task < pieces * rows) rows /= 2;
    const Scratch scratch = scratch_of(args, share.part, rows * group_of(args));
    if (split) return attend_split(args, share, rows, segments, scratch);
    int next = share.take(), number = 0;
    each_task(args, rows, [&](const Task& task) {
        if (number++ != next) return;
        attend_task(args, task, scratch);
        next = share.take();
    });
}

void fill(Kernels& table) {
    table.store = store;
    table.attend = attend;
}

}  // namespace
}  // namespace tokenworks::cpu
