// The executor's instructions for products with weights.
#include "executor.h"

namespace tokenworks::cpu {

void Executor::prepare(Rows rows, Place x, int width, unsigned forms) {
    on_rows(kernels_.prepare, rows, PrepareArgs{0, at(x), width, forms, prepared_input_});
}

void Executor::linear(Rows rows, Place output, Place x, const Place* residual,
                      const std::vector<std::pair<int, int>>& segments) {
    std::vector<Segment>& stacked = segments_.emplace_back();
    Product& product = products_.emplace_back();
    product.rows = rows;
    product.x = at(x);
    product.output = at(output);
    int64_t column = 0;
    for (auto [matrix, bias] : segments) {
        const PackedMatrix& weight = matrices_[static_cast<size_t>(matrix)];
        stacked.push_back({&weight, bias < 0 ? nullptr : vectors_[static_cast<size_t>(bias)].data(), column});
        product.matrices.push_back(matrix);
        product.columns.push_back(column);
        column += weight.out_features;
    }
    const LinearArgs args{0,
                          at(output),
                          residual ? at(*residual).data : nullptr,
                          residual ? residual->second : 0,
                          prepared_input_,
                          stacked.data(),
                          static_cast<int>(stacked.size())};
    calls_.push_back([this, rows, args, number = products_.size() - 1](const Step& step, Share& share) {
        LinearArgs now = args;
        now.rows = step.rows(rows);
        step.adapters ? run_adapted(now, number, share) : kernels_.linear(now, share);
    });
}

}  // namespace tokenworks::cpu
