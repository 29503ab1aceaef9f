// Attention over latents of 8 bits (latent_cache.h): as over K and V of bytes (bytes.h), but that a score is the sum of two,
// of the turned columns and of the latents, each with scales of its own, and that V is K's own codes, turned.
#pragma once

#include "byte_softmax.h"
#include "latent_cache.h"

namespace tokenworks::cpu {
namespace {

class LatentPath {
  public:
    // `memory` is attend_path_floats long.
    LatentPath(const AttendArgs& args, float* memory, int rows)
        : args_(args), turned_step_(fours(turned_columns(args))), q_step_(latent_columns(args)),
          wide_(whole_panels(args.latent)) {
        const int64_t half = int64_t{segment} * whole_panels(args.head_size);
        copies_ = reinterpret_cast<char*>(memory);
        values_ = reinterpret_cast<int8_t*>(memory + half);
        turned_scale_ = memory + 2 * half;
        latent_scale_ = turned_scale_ + segment;
        v_log_ = latent_scale_ + segment;
        v_inverse_ = v_log_ + segment;
        scores_ = reinterpret_cast<int32_t*>(v_inverse_ + segment);
        turned_scores_ = scores_ + byte_rows_at_once * segment;
        weights_ = reinterpret_cast<int16_t*>(turned_scores_ + byte_rows_at_once * segment);
        part_ = partial_at(reinterpret_cast<float*>(weights_ + byte_rows_at_once * segment), byte_rows_at_once, wide_);
        q_turned_scale_ = part_.sum + byte_rows_at_once;
        q_latent_scale_ = q_turned_scale_ + rows;
        q_turned_start_ = reinterpret_cast<int32_t*>(q_latent_scale_ + rows);
        q_latent_start_ = q_turned_start_ + rows;
        q_ = reinterpret_cast<QueryCode*>(q_latent_start_ + rows);
        if (wide_ > fours(args.latent)) __builtin_memset(values_, 0, static_cast<size_t>(segment * wide_));
    }

    void load_queries(const Task& task) const {
        const int turned = turned_columns(args_);
        for (int r = 0; r < task.rows * args_.heads; r++) {
            const float* from = args_.q.row(task.row + r / args_.heads) + r % args_.heads * args_.head_size;
            QueryCode* to = q_ + r * q_step_;
            load_part(from, turned, to, q_turned_scale_ + r, q_turned_start_ + r);
            load_part(from + turned, args_.latent, to + turned_step_, q_latent_scale_ + r, q_latent_start_ + r);
        }
    }

    // What the task's rows see in one segment goes to `total`, which is `fresh` or else has seen those before.
    void attend_segment(const Task& task, int number, const Partial& total, bool fresh) const {
        const int start = number * segment, rows = task.rows * args_.heads;
        const auto seen_by = [&](int r) { return tokenworks::cpu::seen_by(task, r / args_.heads); };
        const int first = seen_by(0).from - start, last = seen_by(rows - 1).to - start;
        const int from = first > 0 ? first / panel * panel : 0, to = last < segment ? last : segment;
        const BytePanels turned = latent_keys(task.source, start, from, to, copies_);
        BytePanels latents = turned;
        latent_values(args_, latents, from, to, wide_, values_);
        load_facts(task.source, start, from, to);
        by_rows<byte_rows_at_once>(rows, [&]<int R>(int row) {
            // A row that sees nothing of this segment still gets a place in it, whose weights are 0.
            const int highest = seen_by(row + R - 1).to - start;
            const int end = highest < from + 1 ? from + 1 : highest < to ? highest : to;
            const QueryCode* q = q_ + row * q_step_;
            score_segment<R>(q, q_step_, q_turned_start_ + row, turned, from, end, turned_step_, turned_scores_);
            score_segment<R>(q + turned_step_, q_step_, q_latent_start_ + row, latents, from, end, q_step_ - turned_step_,
                             scores_);
            for (int r = 0; r < R; r++)
                soften_bytes(
                    args_, [&](int at) { return score_at(r, row + r, at); }, v_log_, v_inverse_, seen_by(row + r), start,
                    from, end, reinterpret_cast<float*>(scores_ + r * segment), weights_ + r * segment,
                    part_.maximum + r, part_.sum + r);
            mix_segment<R>(weights_, latents, from, end, wide_, part_.mixed);
            for (int r = 0; r < R; r++)
                if (fresh)
                    begin(total, row + r, part_, r, wide_);
                else
                    merge(total, row + r, part_, r, wide_);
        });
    }

  private:
    INLINE_MEMBER void load_part(const float* from, int n, QueryCode* to, float* scale, int32_t* start) const {
        alignas(64) int8_t codes[largest_byte_head + 3];
        const float of_scores = args_.scale / static_cast<float>(rotation_size(n));
        *scale = rotated_codes(from, n, codes) * (args_.softcap == 0.0f ? of_scores * log2_e : of_scores);
        int32_t sum = 0;
        for (int d = 0; d < fours(n); d++) sum += codes[d];
        for (int d = 0; d < fours(n); d += 4)
            for (int i = 0; i < 4; i++) to[d + query_place(i)] = static_cast<QueryCode>(codes[d + i]);
        *start = -128 * sum;
    }

    void load_facts(const Source& source, int start, int from, int to) const {
        const int tokens = args_.cache.block_tokens;
        for (int at = from; at < to;) {
            const int slot = (start + at) % tokens, left = tokens - slot, count = left < to - at ? left : to - at;
            const float* facts = latent_facts(args_, latent_block(source, start + at)) + slot;
            const size_t bytes = static_cast<size_t>(count) * sizeof(float);
            __builtin_memcpy(turned_scale_ + at, facts, bytes);
            __builtin_memcpy(v_log_ + at, facts + tokens, bytes);
            at += count;
        }
        for (int at = from; at < whole_panels(to); at += lanes)
            store(latent_scale_ + at, power_of_two(smaller(load(v_log_ + at), all(126.0f))));
        invert_scales(v_log_, from, to, v_inverse_);
    }

    // Of the r-th row of those at once, row `row` of the task.
    INLINE_MEMBER Floats score_at(int r, int row, int at) const {
        Ints turned, latent;
        __builtin_memcpy(&turned, turned_scores_ + r * segment + at, sizeof turned);
        __builtin_memcpy(&latent, scores_ + r * segment + at, sizeof latent);
        const Floats of_latents = __builtin_convertvector(latent, Floats) * q_latent_scale_[row] * load(latent_scale_ + at);
        return multiply_add(__builtin_convertvector(turned, Floats) * q_turned_scale_[row], load(turned_scale_ + at),
                            of_latents);
    }

    const AttendArgs& args_;
    int turned_step_, q_step_, wide_;
    char* copies_;
    int8_t* values_;
    float *turned_scale_, *latent_scale_, *v_log_, *v_inverse_;  // [segment]
    int32_t *scores_, *turned_scores_;                           // [byte_rows_at_once][segment]; and so weights_
    int16_t* weights_;
    Partial part_;                                // byte_rows_at_once rows
    float *q_turned_scale_, *q_latent_scale_;     // [rows]
    int32_t *q_turned_start_, *q_latent_start_;   // [rows]
    QueryCode* q_;                                // [rows][q_step]: the turned columns, the latents
};

}  // namespace
}  // namespace tokenworks::cpu
