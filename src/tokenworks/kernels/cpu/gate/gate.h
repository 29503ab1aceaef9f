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
        each(args.width, [&](int at, auto get, auto put) { put(out + at, function(get(gate + at)) * get(up + at)); });
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
    }
}

void activate(const ActivateArgs& args, Share& share) {
    switch (args.activation) {
        case Activation::silu: return activate_rows<silu>(args, share);
        case Activation::gelu_tanh: return activate_rows<gelu_tanh>(args, share);
        case Activation::gelu: return activate_rows<gelu>(args, share);
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
