// The executor's instructions for norms, activations and arithmetic.
#include "executor.h"

namespace tokenworks::cpu {

void Executor::rmsnorm(Rows rows, Place output, Place x, int width, int group, int weight, bool wide, float epsilon) {
    const float* factors = weight < 0 ? nullptr : values(weight);
    on_rows(kernels_.rmsnorm, rows, RmsNormArgs{0, at(output), at(x), width, group, factors, wide, epsilon});
}

void Executor::layernorm(Rows rows, Place output, Place x, int width, int weight, int bias, float epsilon) {
    const float* shift =
        bias < 0 ? vectors_.emplace_back(static_cast<size_t>(width), 0.0f).data() : values(bias);
    on_rows(kernels_.layernorm, rows, LayerNormArgs{0, at(output), at(x), width, values(weight), shift, epsilon});
}

void Executor::gate(Rows rows, Place output, Place gate, Place up, int width, Activation activation, float limit,
                    float offset) {
    on_rows(kernels_.gate, rows, GateArgs{0, at(output), at(gate), at(up), width, activation, limit, offset});
}

void Executor::activate(Rows rows, Place output, Place x, int width, Activation activation) {
    on_rows(kernels_.activate, rows, ActivateArgs{0, at(output), at(x), width, activation});
}

void Executor::add(Rows rows, Place output, Place a, Place b, int width) {
    on_rows(kernels_.add, rows, AddArgs{0, at(output), at(a), at(b), width});
}

void Executor::scale(Rows rows, Place output, Place x, int width, float factor) {
    on_rows(kernels_.scale, rows, ScaleArgs{0, at(output), at(x), width, factor});
}

void Executor::scale_rows(Rows rows, Place output, Place x, Place by, int width) {
    on_rows(kernels_.scale_rows, rows, ScaleRowsArgs{0, at(output), at(x), at(by), width});
}

void Executor::multiply(Rows rows, Place output, Place x, int width, int weight, bool wide) {
    on_rows(kernels_.multiply, rows, MultiplyArgs{0, at(output), at(x), width, values(weight), wide});
}

void Executor::softcap(Rows rows, Place output, Place x, int width, float cap) {
    on_rows(kernels_.softcap, rows, SoftcapArgs{0, at(output), at(x), width, cap});
}

}  // namespace tokenworks::cpu
