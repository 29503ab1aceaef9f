// logprobs: log-softmax of the chosen tokens, their ranks, and the likeliest tokens.
#pragma once

#include "finite.h"
#include "sample.h"

namespace tokenworks::cpu {
namespace {

// log of the sum of e^logit.
double log_of_total(const float* logits, int n, float best) {
    double total = 0.0;
    for (int begin = 0; begin < n;) {
        const int end = begin + 64 * lanes < n ? begin + 64 * lanes : n;
        Floats run{};
        for (int at = begin; at < end; at += lanes) run = run + exponential(load_logits(logits + at, end - at) - best);
        total += static_cast<double>(sum(run));
        begin = end;
    }
    return static_cast<double>(best) + __builtin_log(total);
}

// How many come before `token` in falling order, ties by id.
int before(const float* logits, int n, int token) {
    const Floats mark = all(logits[token]);
    int count = 0;
    for (int at = 0; at < n; at += lanes) {
        const Floats v = load_logits(logits + at, n - at);
        count += __builtin_popcount(bits(v > mark));
        if (at >= token) continue;
        unsigned equal = bits(v == mark);
        if (token - at < lanes) equal &= (1u << (token - at)) - 1;
        count += __builtin_popcount(equal);
    }
    return count;
}

// The `top` first in falling order, which are few: each that beats the last one so far is put in its place.
void likeliest(const float* logits, int n, int top, int32_t* ids) {
    int found = 0;
    const auto insert = [&](int id) {
        int at = found < top ? found++ : top - 1;
        for (; at > 0 && logits[ids[at - 1]] < logits[id]; at--) ids[at] = ids[at - 1];
        ids[at] = id;
    };
    int id = 0;
    for (; id < top; id++) insert(id);
    for (; id < n && id % lanes != 0; id++)
        if (logits[id] > logits[ids[top - 1]]) insert(id);
    for (; id < n; id += lanes)
        for (unsigned left = bits(load_logits(logits + id, n - id) > all(logits[ids[top - 1]])); left; left &= left - 1) {
            const int next = id + __builtin_ctz(left);
            if (logits[next] > logits[ids[top - 1]]) insert(next);
        }
}

void logprobs(const LogprobsArgs& args, Share& share) {
    for (int r; (r = share.take()) < args.rows;) {
        const float* logits = args.logits + int64_t{r} * args.vocabulary;
        const int n = args.vocabulary, chosen = args.chosen[r];
        const double total = log_of_total(logits, n, best_logit(logits, n));
        args.chosen_logprob[r] = static_cast<float>(static_cast<double>(logits[chosen]) - total);
        args.rank[r] = 1 + before(logits, n, chosen);
        if (args.top == 0) continue;
        int32_t* ids = args.top_token + int64_t{r} * args.top;
        likeliest(logits, n, args.top, ids);
        for (int i = 0; i < args.top; i++)
            args.top_logprob[int64_t{r} * args.top + i] = static_cast<float>(static_cast<double>(logits[ids[i]]) - total);
    }
}

void fill(Kernels& table) {
    table.sample = sample;
    table.logprobs = logprobs;
    table.finite = finite;
}

}  // namespace
}  // namespace tokenworks::cpu
