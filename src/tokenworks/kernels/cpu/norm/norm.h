// rmsnorm and layernorm.
#pragma once

#include "../kernels.h"
#include "../vector.h"

namespace tokenworks::cpu {
namespace {

void rmsnorm(const RmsNormArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        float* out = args.output.row(r);
        for (int start = 0; start < args.width; start += args.group) {
            const float mean = sum_of_squares(x + start, args.group) / static_cast<float>(args.group);
            const Floats scale = all(1.0f / __builtin_sqrtf(mean + args.epsilon));
            if (!args.weight) {
                each(args.group, [&](int at, auto get, auto put) {
                    put(out + start + at, get(x + start + at) * scale);
                });
                continue;
            }
            const float* weight = args.weight + (args.wide ? start : 0);
            each(args.group, [&](int at, auto get, auto put) {
                put(out + start + at, get(x + start + at) * scale * get(weight + at));
            });
        }
    }
}

void layernorm(const LayerNormArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    const float count = static_cast<float>(args.width);
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        float* out = args.output.row(r);
        Floats total{};
        each(args.width, [&](int at, auto get, auto) { total = total + get(x + at); });
        const Floats mean = all(sum(total) / count);
        // Centred first: the mean of squares minus the squared mean would lose its digits.
        each(args.width, [&](int at, auto get, auto put) { put(out + at, get(x + at) - mean); });
        const Floats scale = all(1.0f / __builtin_sqrtf(sum_of_squares(out, args.width) / count + args.epsilon));
        each(args.width, [&](int at, auto get, auto put) {
            put(out + at, multiply_add(get(out + at) * scale, get(args.weight + at), get(args.bias + at)));
        });
    }
}

void fill(Kernels& table) {
    table.rmsnorm = rmsnorm;
    table.layernorm = layernorm;
}

}  // namespace
}  // namespace tokenworks::cpu
