// Attention over K and V in float32, float16 or bfloat16, in float32 arithmetic.
#pragma once

#include "float_tile.h"

namespace tokenworks::cpu {
namespace {

class FloatPath {
  public:
    // `memory` is attend_path_floats long.
    FloatPath(const AttendArgs& args, float* memory, int rows) : args_(args), group_(group_of(args)) {
        const int wide = whole_panels(args.head_size);
        k_ = memory;
        v_ = k_ + int64_t{segment} * wide;
        scores_ = v_ + int64_t{segment} * wide;
        q_ = scores_ + int64_t{rows} * segment;
        part_ = partial_at(q_ + int64_t{rows} * args.head_size, rows, whole_panels(value_size(args)));
    }

    void load_queries(const Task& task) const {
        const int width = group_ * args_.head_size;
        const float scale = args_.softcap == 0.0f ? args_.scale * log2_e : args_.scale;
        for (int r = 0; r < task.rows; r++) {
            const float* from = args_.q.row(task.row + r) + task.source.kv_head * width;
            each(width, [&](int at, auto get, auto put) { put(q_ + r * width + at, get(from + at) * scale); });
        }
    }

    // What the task's rows see in one segment goes to `total`, which is `fresh` or else has seen those before.
    void attend_segment(const Task& task, int number, const Partial& total, bool fresh) const {
        const int start = number * segment;
        const int first = seen_by(task, 0).from - start;
        const int last = seen_by(task, task.rows - 1).to - start;
        const int from = first > 0 ? first / panel * panel : 0, to = last < segment ? last : segment;
        const int rows = task.rows * group_, wide = whole_panels(value_size(args_));
        const Partial& part = fresh ? total : part_;
        // Reading 16 bits in place converts them once for each few rows; copying converts once, and stores.
        if (in_place(args_) && args_.cache.type == CacheType::float32)
            attend_panels(task, with_values(panels_in_place<float>(task.source, start, from, to), from, to), start, from, to,
                          part);
        else if (in_place(args_) && rows <= rows_at_once && !args_.latent)
            with_elements(args_.cache, [&]<typename T>(const T*) {
                attend_panels(task, panels_in_place<T>(task.source, start, from, to), start, from, to, part);
            });
        else
            attend_panels(task, with_values(panels_copied(task.source, start, from, to, k_, v_), from, to), start, from, to,
                          part);
        if (fresh) return;
        for (int r = 0; r < rows; r++) merge(total, r, part, r, wide);
    }

  private:
    // Where V is a part of K: a copy of it, as V lies.
    Panels<float> with_values(const Panels<float>& keys, int from, int to) const {
        return args_.latent ? values_of_keys(keys, from, to, args_.head_size, args_.latent, v_) : keys;
    }

    template <typename T>
    void attend_panels(const Task& task, const Panels<T>& panels_, int start, int from, int to,
                       const Partial& part) const {
        const int rows = task.rows * group_, wide = whole_panels(value_size(args_));
        all_scores(q_, rows, panels_, from, to, args_.head_size, scores_);
        for (int r = 0; r < rows; r++) {
            const Seen seen = seen_by(task, r / group_);
            soften(scores_ + r * segment, seen, start, from, to, part.maximum + r, part.sum + r);
        }
        all_mixed(scores_, rows, panels_, from, to, wide, part.mixed);
    }

    // A row's scores of positions [from, to) of the segment at `start` become weights; also for the rest of its panels,
    // where they become 0.
    void soften(float* scores, Seen seen, int start, int from, int to, float* maximum, float* total) const {
        const int begin = from / panel * panel;
        Floats high = all(lowest);
        for (int at = begin; at < to; at += lanes) {
            Floats s = load(scores + at);
            if (args_.softcap != 0.0f) s = args_.softcap * log2_e * hyperbolic_tangent(s / args_.softcap);
            const int first = start + at;
            if (first < seen.from || first + lanes > seen.to) s = masked(s, first, seen);
            store(scores + at, s);
            high = larger(high, s);
        }
        *maximum = largest(high);
        Floats sums{};
        for (int at = begin; at < to; at += lanes) {
            const Floats weight = power_of_two(load(scores + at) - *maximum);
            store(scores + at, weight);
            sums = sums + weight;
        }
        *total = sum(sums);
    }

    const AttendArgs& args_;
    int group_;
    float *k_, *v_, *scores_, *q_;
    Partial part_;
};

}  // namespace
}  // namespace tokenworks::cpu
