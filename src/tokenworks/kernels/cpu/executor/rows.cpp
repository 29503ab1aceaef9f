// The executor's instructions that bring rows into a step, and choose among them.
#include "executor.h"

#include <algorithm>
#include <stdexcept>

namespace tokenworks::cpu {

void Executor::input(Place output, int width) {
    input_widths_.back() = width;
    const InputArgs args{0, at(output), width, nullptr};
    calls_.push_back([this, args](const Step& step, Share& share) {
        InputArgs now = args;
        now.rows = step.tokens;
        now.inputs = step.inputs;
        kernels_.input(now, share);
    });
}

void Executor::inject(Place x, int width, int offset, bool replace) {
    feature_width_ = std::max(feature_width_, offset + width);
    const InjectArgs args{0, at(x), width, replace, offset, nullptr, 0, nullptr, 0};
    calls_.push_back([this, args](const Step& step, Share& share) {
        if (!step.features) return;
        InjectArgs now = args;
        now.rows = step.tokens;
        now.features = step.features;
        now.feature_stride = step.feature_width;
        now.feature_rows = step.feature_rows;
        now.feature_count = step.feature_count;
        kernels_.inject(now, share);
    });
}

void Executor::merge(Place output, Place x, int width, int count, bool mean) {
    on_rows(kernels_.merge, Rows::merged, MergeArgs{0, at(output), at(x), width, count, mean});
}

void Executor::embed(Rows rows, Place output, int matrix, int width, Index index, float scale) {
    const PackedMatrix& table = matrices_[static_cast<size_t>(matrix)];
    if (index == Index::token) token_limit_ = std::min(token_limit_, table.out_features);
    const int64_t limit = index == Index::known_token ? table.out_features : INT64_MAX;
    if (index == Index::position) position_limit_ = std::min(position_limit_, table.out_features);
    if (index == Index::axis) axis_limit_ = std::min(axis_limit_, table.out_features);
    EmbedArgs args{0, at(output), &table, width, nullptr, scale, limit};
    calls_.push_back([this, rows, args, index](const Step& step, Share& share) {
        EmbedArgs now = args;
        now.rows = step.rows(rows);
        const bool token = index == Index::token || index == Index::known_token;
        now.index = token                      ? step.token_ids
                    : index == Index::position ? step.positions
                    : index == Index::axis     ? step.axes
                                               : nullptr;
        kernels_.embed(now, share);
    });
}

void Executor::select_rows(Place output, Place x, int width) {
    const SelectRowsArgs args{0, at(output), at(x), width, nullptr};
    calls_.push_back([this, args](const Step& step, Share& share) {
        SelectRowsArgs now = args;
        now.rows = step.selected;
        now.index = step.logit_rows;
        kernels_.select_rows(now, share);
    });
}

void Executor::pool(Place output, Place x, int width, bool mean, bool normalise) {
    const PoolArgs args{0, at(output), at(x), width, nullptr, mean, normalise};
    calls_.push_back([this, args](const Step& step, Share& share) {
        PoolArgs now = args;
        now.sequences = step.sequences;
        now.row_starts = step.row_starts;
        kernels_.pool(now, share);
    });
}

}  // namespace tokenworks::cpu
