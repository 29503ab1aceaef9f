// gate, activate and softcap: functions of an element.
#pragma once

#include "../functions.h"
#include "../kernels.h"

namespace tokenworks::cpu {
namespace {

template <Floats (*function)(Floats)>
void gate_rows(const GateArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        const float *gate = args.gate.row(r), *up = args.up.row(r);
        float* out = args.output.row(r);
        if (args.limit == 0.0f && args.offset == 0.0f) {
            each(args.width, [&](int at, auto get, auto put) { put(out + at, function(get(gate + at)) * get(up + at)); });
            continue;
        }
        const Floats limit = all(args.limit > 0.0f ? args.limit : __builtin_inff()), offset = all(args.offset);
        each(args.width, [&](int at, auto get, auto put) {
            const Floats by = larger(smaller(get(up + at), limit), -limit) + offset;
            put(out + at, function(smaller(get(gate + at), limit)) * by);
        });
    }
}

template <Floats (*function)(Floats)>
void activate_rows(const ActivateArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        float* out = args.output.row(r);
        each(args.width, [&](int at, auto get, auto put) { put(out + at, function(get(x + at))); });
    }
}

void gate(const GateArgs& args, Share& share) {
    switch (args.activation) {
        case Activation::silu: return gate_rows<silu>(args, share);
        case Activation::gelu_tanh: return gate_rows<gelu_tanh>(args, share);
        case Activation::gelu: return gate_rows<gelu>(args, share);
        case Activation::gelu_quick: return gate_rows<gelu_quick>(args, share);
        case Activation::relu2: return gate_rows<relu2>(args, share);
        case Activation::sigmoid: return gate_rows<sigmoid>(args, share);
        case Activation::none: return gate_rows<unchanged>(args, share);
    }
}

void activate(const ActivateArgs& args, Share& share) {
    switch (args.activation) {
        case Activation::silu: return activate_rows<silu>(args, share);
        case Activation::gelu_tanh: return activate_rows<gelu_tanh>(args, share);
        case Activation::gelu: return activate_rows<gelu>(args, share);
        case Activation::gelu_quick: return activate_rows<gelu_quick>(args, share);
        case Activation::relu2: return activate_rows<relu2>(args, share);
        case Activation::sigmoid: return activate_rows<sigmoid>(args, share);
        case Activation::none: return activate_rows<unchanged>(args, share);
    }
}

void softcap(const SoftcapArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    const Floats cap = all(args.cap);
    for (int r = range.begin; r < range.end; r++) {
        const float* x = args.x.row(r);
        float* out = args.output.row(r);
        each(args.width, [&](int at, auto get, auto put) {
            put(out + at, cap * hyperbolic_tangent(get(x + at) / cap));
        });
    }
}

void fill(Kernels& table) {
    table.gate = gate;
    table.activate = activate;
    table.softcap = softcap;
}

}  // namespace
}  // namespace tokenworks::cpu
