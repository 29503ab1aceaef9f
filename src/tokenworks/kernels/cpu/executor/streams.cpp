// The executor's instructions for several residual streams beside each other (kernels/program/streams.py).
#include "executor.h"

namespace tokenworks::cpu {

void Executor::mix_streams(Rows rows, Place output, Place x, Place coefficients, int width, int inputs, int outputs,
                           float offset) {
    const MixStreamsArgs args{0, at(output), at(x), at(coefficients), width, inputs, outputs, offset};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        MixStreamsArgs now = args;
        now.rows = step.rows(rows);
        kernels_.mix_streams(now, share);
    });
}

void Executor::match_magnitude(Rows rows, Place output, Place x, Place like, int width, float least) {
    const MatchMagnitudeArgs args{0, at(output), at(x), at(like), width, least};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        MatchMagnitudeArgs now = args;
        now.rows = step.rows(rows);
        kernels_.match_magnitude(now, share);
    });
}

void Executor::sparsify(Rows rows, Place output, Place x, int width, float deviations) {
    const SparsifyArgs args{0, at(output), at(x), width, deviations};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        SparsifyArgs now = args;
        now.rows = step.rows(rows);
        kernels_.sparsify(now, share);
    });
}

}  // namespace tokenworks::cpu
