// route and combine.
#pragma once

#include "../functions.h"
#include "../kernels.h"

namespace tokenworks::cpu {
namespace {

// The k largest of worth[0 .. n), largest first, the lower number first among equals.
INLINE void choose(const float* worth, int n, int k, int32_t* chosen) {
    int count = 0;
    for (int i = 0; i < n; i++) {
        if (count == k && !(worth[i] > worth[chosen[k - 1]])) continue;
        int at = count < k ? count++ : k - 1;
        for (; at > 0 && worth[i] > worth[chosen[at - 1]]; at--) chosen[at] = chosen[at - 1];
        chosen[at] = i;
    }
}

// Leaves experts outside the best groups without worth.
INLINE void keep_best_groups(const RouteArgs& args, float* worth) {
    const int size = args.experts / args.groups;
    float of_groups[most_experts];
    int32_t best[most_chosen];
    for (int g = 0; g < args.groups; g++) {
        choose(worth + g * size, size, args.group_best, best);
        of_groups[g] = 0.0f;
        for (int i = 0; i < args.group_best; i++) of_groups[g] += worth[g * size + best[i]];
    }
    choose(of_groups, args.groups, args.kept_groups, best);
    for (int g = 0; g < args.groups; g++) {
        bool kept = false;
        for (int i = 0; i < args.kept_groups; i++) kept = kept || best[i] == g;
        for (int i = 0; i < size && !kept; i++) worth[g * size + i] = -__builtin_inff();
    }
}

void route(const RouteArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    const int n = args.experts;
    float scores[most_experts], worth[most_experts];
    int32_t chosen[most_chosen];
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        if (args.sigmoid) {
            each(n, [&](int at, auto get, auto put) { put(scores + at, sigmoid(get(x + at))); });
        } else {
            float most = x[0];
            for (int i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
            each(n, [&](int at, auto get, auto put) { put(scores + at, exponential(get(x + at) - all(most))); });
            float total = 0.0f;
            for (int i = 0; i < n; i++) total += scores[i];
            each(n, [&](int at, auto get, auto put) { put(scores + at, get(scores + at) / all(total)); });
        }
        for (int i = 0; i < n; i++) worth[i] = args.bias ? scores[i] + args.bias[i] : scores[i];
        if (args.kept_groups < args.groups) keep_best_groups(args, worth);
        choose(worth, n, args.top_k, chosen);
        float total = 0.0f;
        for (int j = 0; j < args.top_k; j++) total += scores[chosen[j]];
        const float factor = args.normalise ? args.scale / (total + 1e-20f) : args.scale;
        float* out = args.output.row(r);
        for (int j = 0; j < args.top_k; j++) {
            out[j] = static_cast<float>(chosen[j]);
            out[args.top_k + j] = scores[chosen[j]] * factor;
            if (args.expert_scales) out[args.top_k + j] *= args.expert_scales[chosen[j]];
        }
    }
}

void combine(const CombineArgs& args, Share& share) {
    // By columns, in pieces of a cache line: one row is work enough for all threads.
    const Range range = share.rows(args.rows * ((args.width + 15) / 16));
    const int pieces = (args.width + 15) / 16;
    for (int r = range.begin / (pieces ? pieces : 1); r < args.rows; r++) {
        const int begin = range.begin - r * pieces, end = range.end - r * pieces;
        if (end <= 0) break;
        const int first = (begin > 0 ? begin : 0) * 16;
        const int last = end * 16 < args.width ? end * 16 : args.width;
        const int32_t* places = args.places + static_cast<int64_t>(r) * args.top_k;
        const float* weights = args.weights.row(r);
        float* out = args.output.row(r) + first;
        each(last - first, [&](int at, auto get, auto put) {
            Floats total{};
            for (int j = 0; j < args.top_k; j++)
                if (places[j] >= 0) total = multiply_add(get(args.x.row(places[j]) + first + at), all(weights[j]), total);
            put(out + at, total);
        });
    }
}

void fill(Kernels& table) {
    table.route = route;
    table.combine = combine;
}

}  // namespace
}  // namespace tokenworks::cpu
