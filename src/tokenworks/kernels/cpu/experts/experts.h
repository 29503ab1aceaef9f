// Mixtures of experts: each token's rows go through the few experts that it chose (kernels/program/experts.py).
//
// A (token, chosen expert) pair is a row. Rows are sorted by expert, so that an expert's weights are read once for all of
// its tokens; each expert's rows are multiplied as if they were all there are, so that a token's result does not depend on
// which others chose the same expert.
#pragma once

#include <vector>

#include "../kernels.h"
#include "../linear/linear.h"
#include "store.h"

namespace tokenworks::cpu {

struct ExpertsShape {
    int top_k, width, inner;
    Activation activation;
    float limit, offset;
};

// The experts of one layer that are here.
struct Mixture {
    ExpertsShape shape;
    bool gated;
    std::vector<int32_t> place;     // by the router's number: which of those here it is, or -1
    std::vector<Segment> inwards;   // [experts here, gate and up, or up]
    std::vector<Segment> outwards;  // [experts here]: down
    unsigned forms_in, forms_out;   // Forms of their inputs (linear/linear.h)
    std::vector<int64_t> uses;      // by the router's number: rows so far
    ExpertStore* store;             // null: weights are in memory
    int layer;                      // there
};

struct ExpertsArgs {
    int rows;
    Columns output, x, routes;
    Mixture* mixture;
    uint8_t* scratch;  // experts_scratch bytes
};

// Bytes for steps of up to `rows` rows with `threads` threads.
int64_t experts_scratch(const Mixture& mixture, int64_t rows, int threads);

// Called by every thread, after a barrier; calls share.barrier() itself.
void run_experts(const ExpertsArgs& args, Share& share, const Kernels& kernels);

}  // namespace tokenworks::cpu
