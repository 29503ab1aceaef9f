// The executor's instructions for mixtures of experts.
#include "executor.h"

namespace tokenworks::cpu {

void Executor::route(Rows rows, Place output, Place x, RouteArgs args, int bias, int expert_scales) {
    args.output = at(output);
    args.x = at(x);
    args.bias = bias < 0 ? nullptr : values(bias);
    args.expert_scales = expert_scales < 0 ? nullptr : values(expert_scales);
    on_rows(kernels_.route, rows, args);
}

void Executor::experts(Rows rows, Place output, Place x, Place routes, const ExpertsShape& shape, int routed,
                       const std::vector<ExpertNumbers>& experts) {
    Mixture& mixture = mixtures_.emplace_back();
    mixture.shape = shape;
    mixture.store = store_ ? &*store_ : nullptr;
    mixture.gated = !experts.empty() && experts.front().gate >= 0;
    mixture.place.assign(static_cast<size_t>(routed), -1);
    mixture.uses.assign(static_cast<size_t>(routed), 0);
    const auto segment = [&](int matrix, int bias, int64_t column, unsigned& forms) {
        const PackedMatrix& weight = matrices_[static_cast<size_t>(matrix)];
        forms |= kernels_.input_form(weight);
        return Segment{&weight, bias < 0 ? nullptr : vectors_[static_cast<size_t>(bias)].data(), column};
    };
    for (const ExpertNumbers& e : experts) {
        mixture.place.at(static_cast<size_t>(e.number)) = static_cast<int32_t>(mixture.outwards.size());
        if (mixture.gated)
            mixture.inwards.push_back(segment(e.gate, e.gate_bias, 0, mixture.forms_in));
        mixture.inwards.push_back(
            segment(e.up, e.up_bias, mixture.gated ? shape.inner : 0, mixture.forms_in));
        mixture.outwards.push_back(segment(e.down, e.down_bias, 0, mixture.forms_out));
    }
    if (store_) {
        std::vector<std::vector<PackedMatrix*>> matrices;
        for (const ExpertNumbers& e : experts) {
            matrices.emplace_back();
            for (const int matrix : {e.gate, e.up, e.down})
                if (matrix >= 0) matrices.back().push_back(&matrices_[static_cast<size_t>(matrix)]);
        }
        mixture.layer = store_->add(matrices);
    }
    const int64_t bytes = experts_scratch(mixture, step_rows_, team_.size());
    if (bytes > static_cast<int64_t>(experts_scratch_.size()))
        experts_scratch_ = Region(static_cast<size_t>(bytes), true);
    const ExpertsArgs args{0, at(output), at(x), at(routes), &mixture, nullptr};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        ExpertsArgs now = args;
        now.rows = step.rows(rows);
        now.scratch = experts_scratch_.data();
        if (now.rows > 0) run_experts(now, share, kernels_);
    });
}

std::vector<std::vector<int64_t>> Executor::expert_uses() const {
    std::vector<std::vector<int64_t>> uses;
    for (const Mixture& mixture : mixtures_) uses.push_back(mixture.uses);
    return uses;
}

}  // namespace tokenworks::cpu
