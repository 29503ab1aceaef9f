// The executor's instructions for products of each head by itself.
#include <cstring>

#include "executor.h"

namespace tokenworks::cpu {

void Executor::prepare_heads(Rows rows, Place output, Place x, const HeadsShape& shape, unsigned forms) {
    const Columns to = at(output), from = at(x);
    calls_.push_back([this, rows, to, from, shape, forms](const Step& step, Share& share) {
        const int count = step.rows(rows);
        const Range range = share.rows(count);
        for (int h = 0; h < shape.heads; h++) {
            const Columns head{from.data + h * (shape.kept + shape.inputs), from.stride};
            for (int row = range.begin; row < range.end && shape.kept; row++)
                std::memcpy(to.row(row) + h * (shape.kept + shape.outputs), head.row(row),
                            static_cast<size_t>(shape.kept) * sizeof(float));
            const Prepared place = from_row(prepared_input_, int64_t{h} * count, shape.inputs);
            kernels_.prepare({count, {head.data + shape.kept, head.stride}, shape.inputs, forms, place}, share);
        }
    });
}

void Executor::linear_heads(Rows rows, Place output, int kept, const std::vector<int>& matrices) {
    std::vector<Segment>& segments = segments_.emplace_back();
    int64_t column = kept;
    for (const int matrix : matrices) {
        const PackedMatrix& weight = matrices_[static_cast<size_t>(matrix)];
        segments.push_back({&weight, nullptr, column});
        column += kept + weight.out_features;
    }
    const int count = static_cast<int>(segments.size());
    on_rows(kernels_.linear, rows,
            LinearArgs{0, at(output), nullptr, 0, prepared_input_, segments.data(), count, true});
}

}  // namespace tokenworks::cpu
