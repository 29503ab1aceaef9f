// Attention over K and V of 8 bits with scales (byte_cache.h), in whole numbers where the work is.
//
// A score is (sum of codes) * scale of q * scale of K. The scale of V's position is put into its weight, that is, its
// logarithm into the score: so weights reach 1 exactly where they matter most and the sum over positions is one of whole
// numbers. Softmax's own sum takes the scale out again.
#pragma once

#include "byte_softmax.h"

namespace tokenworks::cpu {
namespace {

class BytePath {
  public:
    // `memory` is attend_path_floats long.
    BytePath(const AttendArgs& args, float* memory, int rows) : args_(args), group_(group_of(args)) {
        copies_ = reinterpret_cast<char*>(memory);
        memory += 2 * segment * whole_panels(args.head_size) / 4;
        k_scale_ = memory;
        v_log_ = k_scale_ + segment;
        v_inverse_ = v_log_ + segment;
        scores_ = reinterpret_cast<int32_t*>(v_inverse_ + segment);
        weights_ = reinterpret_cast<int16_t*>(scores_ + byte_rows_at_once * segment);
        part_ = partial_at(reinterpret_cast<float*>(weights_ + byte_rows_at_once * segment), byte_rows_at_once,
                           whole_panels(args.head_size));
        q_scale_ = part_.sum + byte_rows_at_once;
        q_start_ = reinterpret_cast<int32_t*>(q_scale_ + rows);
        q_ = reinterpret_cast<QueryCode*>(q_start_ + rows);
        q_step_ = (args.head_size + 3) / 4 * 4;
    }

    void load_queries(const Task& task) const {
        const int size = args_.head_size;
        const float scale = args_.scale / static_cast<float>(rotation_size(size));
        float rotated[largest_byte_head];
        alignas(64) int8_t codes[largest_byte_head + 3];
        for (int r = 0; r < task.rows * group_; r++) {
            const int head = task.source.kv_head * group_ + r % group_;
            __builtin_memcpy(rotated, args_.q.row(task.row + r / group_) + head * size,
                             static_cast<size_t>(size) * sizeof(float));
            rotate(rotated, size);
            q_scale_[r] = quantise(rotated, size, codes) * (args_.softcap == 0.0f ? scale * log2_e : scale);
            QueryCode* to = q_ + r * q_step_;
            int32_t sum = 0;
            for (int d = size; d < q_step_; d++) codes[d] = 0;
            for (int d = 0; d < q_step_; d++) sum += codes[d];
            for (int d = 0; d < q_step_; d += 4)
                for (int i = 0; i < 4; i++) to[d + query_place(i)] = static_cast<QueryCode>(codes[d + i]);
            q_start_[r] = -128 * sum;
        }
    }

    // What the task's rows see in one segment goes to `total`, which is `fresh` or else has seen those before.
    void attend_segment(const Task& task, int number, const Partial& total, bool fresh) const {
        const int start = number * segment, wide = whole_panels(args_.head_size), rows = task.rows * group_;
        const auto seen_by = [&](int r) { return tokenworks::cpu::seen_by(task, r / group_); };
        const int first = seen_by(0).from - start, last = seen_by(rows - 1).to - start;
        const int from = first > 0 ? first / panel * panel : 0, to = last < segment ? last : segment;
        const BytePanels panels_ = in_place(args_) ? byte_panels_in_place(task.source, start, from, to)
                                                   : byte_panels_copied(task.source, start, from, to, copies_);
        load_facts(task.source, start, from, to);
        by_rows<byte_rows_at_once>(rows, [&]<int R>(int row) {
            // A row that sees nothing of this segment still gets a place in it, whose weights are 0.
            const int highest = seen_by(row + R - 1).to - start;
            const int end = highest < from + 1 ? from + 1 : highest < to ? highest : to;
            score_segment<R>(q_ + row * q_step_, q_step_, q_start_ + row, panels_, from, end, q_step_, scores_);
            for (int r = 0; r < R; r++)
                soften_bytes(
                    args_, [&](int at) { return score_at(r, row + r, at); }, v_log_, v_inverse_, seen_by(row + r), start,
                    from, end, reinterpret_cast<float*>(scores_ + r * segment), weights_ + r * segment,
                    part_.maximum + r, part_.sum + r);
            mix_segment<R>(weights_, panels_, from, end, wide, part_.mixed);
            for (int r = 0; r < R; r++)
                if (fresh)
                    begin(total, row + r, part_, r, wide);
                else
                    merge(total, row + r, part_, r, wide);
        });
    }

  private:
    // Scales of the panels' positions, side by side.
    void load_facts(const Source& source, int start, int from, int to) const {
        const int tokens = args_.cache.block_tokens;
        const bool whole = tokens % panel == 0;
        for (int at = from, count; at < to; at += count) {
            const int slot = (start + at) % tokens, left = tokens - slot;
            const ByteBlock block = byte_block_of(source, start + at);
            const float *k = facts_of(args_, block.k) + slot, *v = facts_of(args_, block.v) + slot;
            count = whole ? panel : left < to - at ? left : to - at;
            if (whole) {  // no call for a cache line
                __builtin_memcpy(k_scale_ + at, k, panel * sizeof(float));
                __builtin_memcpy(v_log_ + at, v, panel * sizeof(float));
                continue;
            }
            __builtin_memcpy(k_scale_ + at, k, static_cast<size_t>(count) * sizeof(float));
            __builtin_memcpy(v_log_ + at, v, static_cast<size_t>(count) * sizeof(float));
        }
        invert_scales(v_log_, from, to, v_inverse_);
    }

    // Of the r-th row of those at once, row `row` of the task.
    INLINE_MEMBER Floats score_at(int r, int row, int at) const {
        Ints sums;
        __builtin_memcpy(&sums, scores_ + r * segment + at, sizeof sums);
        return __builtin_convertvector(sums, Floats) * q_scale_[row] * load(k_scale_ + at);
    }

    const AttendArgs& args_;
    int group_, q_step_;
    char* copies_;
    float *k_scale_, *v_log_, *v_inverse_;  // [segment]
    int32_t* scores_;                       // [byte_rows_at_once][segment]; and so weights_
    int16_t* weights_;
    Partial part_;      // byte_rows_at_once rows
    float* q_scale_;    // [rows]
    int32_t* q_start_;  // [rows]
    QueryCode* q_;      // [rows][q_step]
};

}  // namespace
}  // namespace tokenworks::cpu
