// finite: are there only numbers? NaN and infinity times 0 are NaN, and a sum keeps it.
#pragma once

#include "../functions.h"
#include "../kernels.h"

namespace tokenworks::cpu {
namespace {

void finite(const FiniteArgs& args, Share& share) {
    const Range columns = share.rows(args.width);
    Floats total{};
    for (int r = 0; r < args.rows; r++) {
        const float* x = args.x.row(r) + columns.begin;
        each(columns.end - columns.begin,
             [&](int at, auto get, auto) { total = multiply_add(get(x + at), Floats{}, total); });
    }
    if (!(sum(total) == 0.0f)) args.finite->store(false, std::memory_order_relaxed);
}

}  // namespace
}  // namespace tokenworks::cpu
