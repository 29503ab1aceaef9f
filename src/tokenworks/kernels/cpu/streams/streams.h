// mix_streams, match_magnitude and sparsify (kernels/program/streams.py).
#pragma once

#include "../kernels.h"
#include "../vector.h"

namespace tokenworks::cpu {
namespace {

void mix_streams(const MixStreamsArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        const float *x = args.x.row(r), *coefficients = args.coefficients.row(r);
        float* out = args.output.row(r);
        for (int i = 0; i < args.outputs; i++, coefficients += args.inputs, out += args.width)
            each(args.width, [&](int at, auto get, auto put) {
                Floats total{};
                for (int j = 0; j < args.inputs; j++)
                    total = multiply_add(get(x + j * args.width + at), all(coefficients[j] + args.offset), total);
                put(out + at, total);
            });
    }
}

void match_magnitude(const MatchMagnitudeArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    const float count = static_cast<float>(args.width);
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        float* out = args.output.row(r);
        const float wanted = sum_of_squares(args.like.row(r), args.width) / count;
        const float found = sum_of_squares(x, args.width) / count;
        const Floats by = all(__builtin_sqrtf(wanted) / __builtin_sqrtf(found > args.least ? found : args.least));
        each(args.width, [&](int at, auto get, auto put) { put(out + at, get(x + at) * by); });
    }
}

void sparsify(const SparsifyArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    const float count = static_cast<float>(args.width);
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        float* out = args.output.row(r);
        Floats total{};
        each(args.width, [&](int at, auto get, auto) { total = total + get(x + at); });
        const Floats mean = all(sum(total) / count);
        each(args.width, [&](int at, auto get, auto put) { put(out + at, get(x + at) - mean); });
        const Floats cut = all(args.deviations * __builtin_sqrtf(sum_of_squares(out, args.width) / count));
        each(args.width, [&](int at, auto get, auto put) { put(out + at, larger(get(out + at) - cut, Floats{})); });
    }
}

void fill(Kernels& table) {
    table.mix_streams = mix_streams;
    table.match_magnitude = match_magnitude;
    table.sparsify = sparsify;
}

}  // namespace
}  // namespace tokenworks::cpu
