// Attention with an online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867; Dao 2022, arXiv 2205.14135) that does
// not depend on how the work is cut: each segment of 128 positions has its own maximum, sum and mixture of values, and
// segments are merged in order. Positions that a query does not see count with weight exactly 0, so a query's result is
// the same bits whichever queries are computed beside it and whichever thread computes a segment.
#pragma once

#include "bytes.h"
#include "floats.h"
#include "latent_bytes.h"

namespace tokenworks::cpu {
namespace {

void store(const AttendArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    int sequence = 0;
    for (int row = range.begin; row < range.end; row++) {
        while (args.row_starts[sequence + 1] <= row) sequence++;
        const int32_t* table = args.block_tables + int64_t{sequence} * args.table_width;
        switch (args.cache.type) {
            case CacheType::float32: store_row<float>(args, table, row); break;
            case CacheType::float16: store_row<uint16_t>(args, table, row); break;
            case CacheType::bfloat16: store_row<Bfloat>(args, table, row); break;
            case CacheType::int8:
                if (args.latent)
                    store_latent_row(args, table, row);
                else
                    store_byte_row(args, table, row);
                break;
        }
    }
}

INLINE void finish_row(const AttendArgs& args, const Partial& total, int r, int row, int head) {
    const float* mixed = total.mixed + int64_t{r} * whole_panels(value_size(args));
    float* out = args.output.row(row) + head * value_size(args);
    float sum = total.sum[r];
    if (args.sinks) sum += power_of_two(smaller(all(args.sinks[head] * log2_e - total.maximum[r]), all(126.0f)))[0];
    const bool rotated = args.latent && args.cache.type == CacheType::int8;
    const Floats share = all(1.0f / sum / static_cast<float>(rotated ? rotation_size(args.latent) : 1));
    each(value_size(args), [&](int at, auto get, auto put) { put(out + at, get(mixed + at) * share); });
    if (rotated) rotate(out, args.latent);
}

// All the segments of a task, one after the other.
template <typename Path>
void attend_task(const AttendArgs& args, const Task& task, const Path& path, const Partial& total) {
    const int group = group_of(args);
    path.load_queries(task);
    for (int s = task.segment_begin; s < task.segment_end; s++)
        path.attend_segment(task, s, total, s == task.segment_begin);
    for (int r = 0; r < task.rows * group; r++)
        finish_row(args, total, r, task.row + r / group, task.source.kv_head * group + r % group);
}

// Calls body(task) for every task of the step. The longest of a sequence come first: they are the last to finish.
template <typename Body>
INLINE void each_task(const AttendArgs& args, int rows_in_task, const Body& body) {
    for (int s = 0; s < args.sequences; s++) {
        const int begin = args.row_starts[s], end = args.row_starts[s + 1];
        const int32_t* table = args.cache.k ? args.block_tables + int64_t{s} * args.table_width : nullptr;
        const int origin = args.cache.k ? args.positions[begin] : 0, positions = origin + end - begin;
        const int blocks = (end - begin + rows_in_task - 1) / rows_in_task;
        const int first_block = blocks * args.portion / args.portions;
        for (int block = blocks * (args.portion + 1) / args.portions - 1; block >= first_block; block--) {
            const int row = begin + block * rows_in_task, left = end - row;
            const int rows = left < rows_in_task ? left : rows_in_task, first = origin + row - begin;
            const int segment_begin = seen_at(args, row, first, positions).from / segment;
            const int segment_end = (seen_at(args, row + rows - 1, first + rows - 1, positions).to + segment - 1) / segment;
            for (int head = 0; head < args.kv_heads; head++)
                body(Task{{&args, table, begin, head}, row, rows, first, positions, segment_begin, segment_end});
        }
    }
}

// Few queries, so that whole tasks would not keep all threads busy: each (task, segment) is a piece of work by itself.
// The partial results of a query row and head lie together, segment after segment.
template <typename Path>
void attend_split(const AttendArgs& args, Share& share, int rows_in_task, int segments, const Path& path,
                  const Partial& part) {
    const int group = group_of(args), wide = whole_panels(value_size(args));
    float* partials = args.scratch + share.parts * attend_thread_floats(args.heads, args.kv_heads, args.head_size);
    const auto slot = [&](int row, int head, int s) {
        return partials + ((int64_t{row} * args.heads + head) * segments + s) * partial_floats(1, wide);
    };
    int next = share.take(), number = 0;
    each_task(args, rows_in_task, [&](const Task& task) {
        bool loaded = false;
        for (int s = task.segment_begin; s < task.segment_end; s++) {
            if (number++ != next) continue;
            if (!loaded) path.load_queries(task);
            loaded = true;
            path.attend_segment(task, s, part, true);
            for (int r = 0; r < task.rows * group; r++) {
                const int head = task.source.kv_head * group + r % group;
                begin(partial_at(slot(task.row + r / group, head, s), 1, wide), 0, part, r, wide);
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

// What a step's tasks come to, in (row, segment) pairs of a KV head.
struct Load {
    int tasks;
    int64_t whole, longest;  // all tasks; the longest of them
};

Load load_of(const AttendArgs& args, int rows_in_task) {
    Load load{};
    for (int s = 0; s < args.sequences; s++) {
        const int begin = args.row_starts[s], rows = args.row_starts[s + 1] - begin;
        const int64_t segments = ((args.cache.k ? args.positions[begin] : 0) + rows + segment - 1) / segment;
        load.tasks += (rows + rows_in_task - 1) / rows_in_task * args.kv_heads;
        load.whole += rows * segments * args.kv_heads;
        const int64_t task = (rows < rows_in_task ? rows : rows_in_task) * segments;
        load.longest = task > load.longest ? task : load.longest;
    }
    return load;
}

template <typename Path>
void attend_by(const AttendArgs& args, Share& share) {
    // Enough rows to make loading K and V cheap; enough pieces of work to go round, none much longer than the others.
    const int segments = segments_of(args), pieces = 8 * share.parts;
    int rows = attend_task_rows(args.heads, args.kv_heads);
    const Load load = load_of(args, rows);
    const bool split = load.whole < pieces * load.longest && segments > 1 &&
                       int64_t{args.rows} * args.heads * segments <= args.partials;
    const int parts_of_task = split ? segments : 1;
    while (rows > 4 && load_of(args, rows).tasks * parts_of_task < pieces) rows /= 2;
    const int all_rows = rows * group_of(args), wide = whole_panels(value_size(args));
    float* memory = args.scratch + share.part * attend_thread_floats(args.heads, args.kv_heads, args.head_size);
    const Partial total = partial_at(memory, all_rows, wide);
    const Path path(args, memory + partial_floats(all_rows, wide), all_rows);
    if (split) return attend_split(args, share, rows, segments, path, total);
    int next = share.take(), number = 0;
    each_task(args, rows, [&](const Task& task) {
        if (number++ != next) return;
        attend_task(args, task, path, total);
        next = share.take();
    });
}

void attend(const AttendArgs& args, Share& share) {
    if (!args.cache.k || args.cache.type != CacheType::int8) return attend_by<FloatPath>(args, share);
    if (args.latent) return attend_by<LatentPath>(args, share);
    attend_by<BytePath>(args, share);
}

void fill(Kernels& table) {
    table.store = store;
    table.attend = attend;
}

}  // namespace
}  // namespace tokenworks::cpu
