// The executor's instructions for several residual streams beside each other (kernels/program/streams.py).
#include "executor.h"

namespace tokenworks::cpu {

void Executor::mix_streams(Rows rows, Place output, Place x, Place coefficients, int width, int inputs, int outputs,
                           float offset) {
    on_rows(kernels_.mix_streams, rows,
            MixStreamsArgs{0, at(output), at(x), at(coefficients), width, inputs, outputs, offset});
}

void Executor::match_magnitude(Rows rows, Place output, Place x, Place like, int width, float least) {
    on_rows(kernels_.match_magnitude, rows, MatchMagnitudeArgs{0, at(output), at(x), at(like), width, least});
}

void Executor::sparsify(Rows rows, Place output, Place x, int width, float deviations) {
    on_rows(kernels_.sparsify, rows, SparsifyArgs{0, at(output), at(x), width, deviations});
}

}  // namespace tokenworks::cpu
