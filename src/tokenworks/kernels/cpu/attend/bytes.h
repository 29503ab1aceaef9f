// Attention over K and V of 8 bits with scales (byte_cache.h), in whole numbers where the work is.
//
// A score is (sum of codes) * scale of q * scale of K. The scale of V's position is put into its weight, that is, its
// logarithm into the score: so weights reach 1 exactly where they matter most and the sum over positions is one of whole
// numbers. Softmax's own sum takes the scale out again.
#pragma once

#include "byte_tile.h"

namespace tokenworks::cpu {
namespace {

constexpr float log2_largest_weight = 14.999956f;  // of 32767

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
            score<R>(row, panels_, from, end);
            for (int r = 0; r < R; r++)
                soften(scores_ + r * segment, q_scale_[row + r], seen_by(row + r), start, from, end,
                       weights_ + r * segment, part_.maximum + r, part_.sum + r);
            mix<R>(panels_, from, end, wide);
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
        for (int at = from; at < to;) {
            const int slot = (start + at) % args_.cache.block_tokens, left = args_.cache.block_tokens - slot;
            const int count = left < to - at ? left : to - at;
            const ByteBlock block = byte_block_of(source, start + at);
            const size_t bytes = static_cast<size_t>(count) * sizeof(float);
            __builtin_memcpy(k_scale_ + at, facts_of(args_, block.k) + slot, bytes);
            __builtin_memcpy(v_log_ + at, facts_of(args_, block.v) + slot, bytes);
            at += count;
        }
        for (int at = from; at < whole_panels(to); at += lanes)  // finite whatever an unused place holds: 0 times it is 0
            store(v_inverse_ + at, power_of_two(smaller(-load(v_log_ + at), all(126.0f))));
    }

    template <int R>
    INLINE_MEMBER void score(int row, const BytePanels& panels_, int from, int end) const {
        int at = from;
        for (; at + registers_at_once * lanes <= whole_panels(end); at += registers_at_once * lanes)
            score_bytes<R, registers_at_once>(q_ + row * q_step_, q_step_, q_start_ + row, panels_, at, q_step_, scores_);
        for (; at < end; at += lanes)
            score_bytes<R, 1>(q_ + row * q_step_, q_step_, q_start_ + row, panels_, at, q_step_, scores_);
    }

    template <int R>
    INLINE_MEMBER void mix(const BytePanels& panels_, int from, int end, int wide) const {
        int at = 0;
        for (; at + registers_at_once * lanes <= wide; at += registers_at_once * lanes)
            mix_bytes<R, registers_at_once>(weights_, panels_, from, end, at, part_.mixed, wide);
        for (; at < wide; at += lanes) mix_bytes<R, 1>(weights_, panels_, from, end, at, part_.mixed, wide);
    }

    // A row's scores of positions [from, end) of the segment at `start` become weights; also for the rest of its panels,
    // where they become 0.
    INLINE_MEMBER void soften(const int32_t* scores, float q_scale, Seen seen, int start, int from, int end, int16_t* weights,
                       float* maximum, float* total) const {
        float* logs = reinterpret_cast<float*>(const_cast<int32_t*>(scores));
        Floats high = all(lowest);
        const int stop = whole_panels(end);
        for (int at = from; at < stop; at += lanes) {
            Ints sums;
            __builtin_memcpy(&sums, scores + at, sizeof sums);
            Floats s = __builtin_convertvector(sums, Floats) * q_scale * load(k_scale_ + at);
            if (args_.softcap != 0.0f) s = args_.softcap * log2_e * hyperbolic_tangent(s / args_.softcap);
            s = s + load(v_log_ + at);
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
                sums[c] = multiply_add(weight, load(v_inverse_ + at + c * lanes), sums[c]);
                store_low_halves(weights + at + c * lanes, reinterpret_cast<Ints>(weight + all(0x1.8p23f)));
            }
        UNROLL for (int half = columns / 2; half; half /= 2)
            for (int c = 0; c < half; c++) sums[c] = sums[c] + sums[c + half];
        *maximum = top;
        *total = sum(sums[0]);
    }

    INLINE_MEMBER void store_low_halves(int16_t* to, Ints v) const {
        typedef int16_t Shorts __attribute__((vector_size(lanes * 2)));
        const Shorts low = __builtin_convertvector(v, Shorts);
        __builtin_memcpy(to, &low, sizeof low);
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
