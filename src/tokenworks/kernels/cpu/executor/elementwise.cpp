// The executor's instructions for norms, activations and arithmetic.
#include "executor.h"

namespace tokenworks::cpu {

void Executor::rmsnorm(Rows rows, Place output, Place x, int width, int group, int weight, bool wide, float epsilon) {
    const RmsNormArgs args{0, at(output), at(x), width, group, weight < 0 ? nullptr : values(weight), wide, epsilon};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        RmsNormArgs now = args;
        now.rows = step.rows(rows);
        kernels_.rmsnorm(now, share);
    });
}

void Executor::layernorm(Rows rows, Place output, Place x, int width, int weight, int bias, float epsilon) {
    const float* shift = bias < 0 ? vectors_.emplace_back(static_cast<size_t>(width), 0.0f).data()
                                  : vectors_[static_cast<size_t>(bias)].data();
    const LayerNormArgs args{0, at(output), at(x), width, vectors_[static_cast<size_t>(weight)].data(), shift, epsilon};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        LayerNormArgs now = args;
        now.rows = step.rows(rows);
        kernels_.layernorm(now, share);
    });
}

void Executor::gate(Rows rows, Place output, Place gate, Place up, int width, Activation activation, float limit,
                    float offset) {
    const GateArgs args{0, at(output), at(gate), at(up), width, activation, limit, offset};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        GateArgs now = args;
        now.rows = step.rows(rows);
        kernels_.gate(now, share);
    });
}

void Executor::activate(Rows rows, Place output, Place x, int width, Activation activation) {
    const ActivateArgs args{0, at(output), at(x), width, activation};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        ActivateArgs now = args;
        now.rows = step.rows(rows);
        kernels_.activate(now, share);
    });
}

void Executor::add(Rows rows, Place output, Place a, Place b, int width) {
    const AddArgs args{0, at(output), at(a), at(b), width};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        AddArgs now = args;
        now.rows = step.rows(rows);
        kernels_.add(now, share);
    });
}

void Executor::scale(Rows rows, Place output, Place x, int width, float factor) {
    const ScaleArgs args{0, at(output), at(x), width, factor};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        ScaleArgs now = args;
        now.rows = step.rows(rows);
        kernels_.scale(now, share);
    });
}

void Executor::scale_rows(Rows rows, Place output, Place x, Place by, int width) {
    const ScaleRowsArgs args{0, at(output), at(x), at(by), width};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        ScaleRowsArgs now = args;
        now.rows = step.rows(rows);
        kernels_.scale_rows(now, share);
    });
}

void Executor::multiply(Rows rows, Place output, Place x, int width, int weight, bool wide) {
    const MultiplyArgs args{0, at(output), at(x), width, values(weight), wide};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        MultiplyArgs now = args;
        now.rows = step.rows(rows);
        kernels_.multiply(now, share);
    });
}

void Executor::softcap(Rows rows, Place output, Place x, int width, float cap) {
    const SoftcapArgs args{0, at(output), at(x), width, cap};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        SoftcapArgs now = args;
        now.rows = step.rows(rows);
        kernels_.softcap(now, share);
    });
}

}  // namespace tokenworks::cpu
