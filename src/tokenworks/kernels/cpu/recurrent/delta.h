// delta_rule: threads share (sequence, head). A strip of the state, a register wide, stays in the first cache over a
// chunk of rows.
#pragma once

#include "scan.h"

namespace tokenworks::cpu {
namespace {

// A chunk's inputs for one head, brought together: q and k of length one, q scaled too.
struct DeltaChunk {
    int rows;
    float step[chunk], keep[chunk], rate[chunk];
    float *q, *k;  // [rows, key_size]
};

INLINE void gather_unit(float* to, const Columns& from, int first, int rows, int column, int width, float scale) {
    gather(to, from, first, rows, column, width);
    for (int t = 0; t < rows; t++) {
        float* row = to + int64_t{t} * width;
        const Floats factor = all(scale / __builtin_sqrtf(sum_of_squares(row, width) + 1e-6f));
        each(width, [&](int at, auto get, auto put) { put(row + at, get(row + at) * factor); });
    }
}

// sum of weights[i] * strip[i], always in the same order.
INLINE Floats weighted(const float* weights, const float* strip, int count) {
    Floats total[4] = {};
    int i = 0;
    for (; i + 4 <= count; i += 4)
        for (int j = 0; j < 4; j++) total[j] = multiply_add(all(weights[i + j]), load(strip + (i + j) * lanes), total[j]);
    for (; i < count; i++) total[0] = multiply_add(all(weights[i]), load(strip + i * lanes), total[0]);
    return (total[0] + total[1]) + (total[2] + total[3]);
}

// The strip's next state and output: state = keep * state + k wrong', out = q' state.
INLINE Floats advance(const float* q, const float* k, float* strip, int count, Floats keep, Floats wrong) {
    Floats total[4] = {};
    const auto one = [&](int i, Floats& sum) {
        const Floats next = multiply_add(all(k[i]), wrong, load(strip + i * lanes) * keep);
        store(strip + i * lanes, next);
        sum = multiply_add(all(q[i]), next, sum);
    };
    int i = 0;
    for (; i + 4 <= count; i += 4)
        for (int j = 0; j < 4; j++) one(i + j, total[j]);
    for (; i < count; i++) one(i, total[0]);
    return (total[0] + total[1]) + (total[2] + total[3]);
}

void delta_rule(const DeltaRuleArgs& args, Share& share) {
    const int keys = args.key_size, size = args.value_size, heads = args.heads;
    const int64_t floats = int64_t{keys} * size;
    DeltaChunk in{};
    in.q = SCRATCH(chunk * keys);
    in.k = SCRATCH(chunk * keys);
    float* strip = SCRATCH(keys * lanes);
    for (int task; (task = share.take()) < args.states.sequences * heads;) {
        const int s = task / heads, head = task % heads;
        const int key_head = args.alternating ? head % args.key_heads : head / (heads / args.key_heads);
        along_sequence(args.states, s, head * floats, floats, [&](float* state, int first, int rows) {
            in.rows = rows;
            time_steps(args.steps, head, first, rows, args.step_bias[head], 0.0f, 3e38f, args.decay[head], in.step, in.keep);
            float raw[chunk] = {};
            for (int t = 0; t < rows; t++) raw[t] = args.rates.row(first + t)[head];
            for (int t = 0; t < chunk; t += lanes) store(in.rate + t, sigmoid(load(raw + t)));
            gather_unit(in.q, args.q, first, rows, key_head * keys, keys, 1.0f / __builtin_sqrtf(static_cast<float>(keys)));
            gather_unit(in.k, args.k, first, rows, key_head * keys, keys, 1.0f);
            each(size, [&](int at, auto get, auto put) {
                for (int i = 0; i < keys; i++) store(strip + i * lanes, get(state + int64_t{i} * size + at));
                for (int t = 0; t < rows; t++) {
                    const float *q = in.q + t * keys, *k = in.k + t * keys;
                    const Floats keep = all(in.keep[t]), v = get(args.v.row(first + t) + head * size + at);
                    const Floats wrong = (v - keep * weighted(k, strip, keys)) * in.rate[t];
                    put(args.output.row(first + t) + head * size + at, advance(q, k, strip, keys, keep, wrong));
                }
                for (int i = 0; i < keys; i++) put(state + int64_t{i} * size + at, load(strip + i * lanes));
            });
        });
    }
}

}  // namespace
}  // namespace tokenworks::cpu
