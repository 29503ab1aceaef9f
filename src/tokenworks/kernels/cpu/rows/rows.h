// select_rows and pool.
#pragma once

#include "../kernels.h"
#include "../vector.h"

namespace tokenworks::cpu {
namespace {

void select_rows(const SelectRowsArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++)
        __builtin_memcpy(args.output.row(r), args.x.row(args.index[r]), static_cast<size_t>(args.width) * sizeof(float));
}

void pool(const PoolArgs& args, Share& share) {
    const Range range = share.rows(args.sequences);
    for (int s = range.begin; s < range.end; s++) {
        const int begin = args.row_starts[s], end = args.mean ? args.row_starts[s + 1] : begin + 1;
        float* out = args.output.row(s);
        const Floats count = all(static_cast<float>(end - begin));
        each(args.width, [&](int at, auto get, auto put) {
            Floats total{};
            for (int r = begin; r < end; r++) total = total + get(args.x.row(r) + at);
            put(out + at, total / count);
        });
        if (!args.normalise) continue;
        const Floats length = all(__builtin_sqrtf(sum_of_squares(out, args.width)));
        each(args.width, [&](int at, auto get, auto put) { put(out + at, get(out + at) / length); });
    }
}

void fill(Kernels& table) {
    table.select_rows = select_rows;
    table.pool = pool;
}

}  // namespace
}  // namespace tokenworks::cpu
