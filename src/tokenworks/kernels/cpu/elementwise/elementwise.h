// add, scale, scale_rows, multiply.
#pragma once

#include "../kernels.h"
#include "../vector.h"

namespace tokenworks::cpu {
namespace {

void add(const AddArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        const float *a = args.a.row(r), *b = args.b.row(r);
        float* out = args.output.row(r);
        each(args.width, [&](int at, auto get, auto put) { put(out + at, get(a + at) + get(b + at)); });
    }
}

void scale(const ScaleArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        float* out = args.output.row(r);
        each(args.width, [&](int at, auto get, auto put) { put(out + at, args.factor * get(x + at)); });
    }
}

void scale_rows(const ScaleRowsArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        float* out = args.output.row(r);
        const Floats by = all(*args.by.row(r));
        each(args.width, [&](int at, auto get, auto put) { put(out + at, get(x + at) * by); });
    }
}

void multiply(const MultiplyArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        float* out = args.output.row(r);
        each(args.width, [&](int at, auto get, auto put) {
            put(out + at, get(x + at) * (args.wide ? get(args.weight + at) : all(*args.weight)));
        });
    }
}

void fill(Kernels& table) {
    table.add = add;
    table.scale = scale;
    table.scale_rows = scale_rows;
    table.multiply = multiply;
}

}  // namespace
}  // namespace tokenworks::cpu
