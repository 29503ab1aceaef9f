// The executor's part in recurrent layers: their memory, and which slots a step reads and writes.
#include <stdexcept>

#include "executor.h"

namespace tokenworks::cpu {
namespace {

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

}  // namespace

void Executor::find_writings(const Step& step) {
    const auto in_memory = [&](int32_t slot) { return slot >= 0 && slot < cache_shape_.state_slots; };
    write_starts_.assign(1, 0);
    int w = 0;
    for (int s = 0; s < step.sequences; s++) {
        const int end = step.row_starts[s + 1];
        int row = step.row_starts[s] - 1;
        for (; w < step.state_writings && step.state_rows[w] < end; w++) {
            require(step.state_rows[w] > row, "rows of states must ascend");
            require(in_memory(step.state_slots[w]), "a state's slot is outside the memory");
            row = step.state_rows[w];
        }
        require(row == end - 1, "a sequence's last state must be written");
        const bool first = step.positions[step.row_starts[s]] == 0;
        require(first ? step.state_begin[s] == -1 : in_memory(step.state_begin[s]),
                "a sequence begins without a state, and goes on from one within the memory");
        write_starts_.push_back(w);
    }
    require(w == step.state_writings, "a state is written after a row that is not in the step");
}

States Executor::states(const States& layer, const Step& step) const {
    States now = layer;
    now.row_starts = step.row_starts;
    now.begin = step.state_begin;
    now.write_starts = write_starts_.data();
    now.rows = step.state_rows;
    now.slots = step.state_slots;
    now.sequences = step.sequences;
    return now;
}

namespace {

States layer_states(const Region& memory, int64_t slot_floats, int64_t offset) {
    States layer{};
    layer.data = reinterpret_cast<float*>(memory.data()) + offset;
    layer.slot_stride = slot_floats;
    return layer;
}

}  // namespace

void Executor::short_convolution(Place output, Place x, int state, int width, int kernel, int weight, int bias,
                                 bool activated) {
    recurrent_parts_.back() = true;
    std::vector<float>& turned = vectors_.emplace_back(static_cast<size_t>(width) * static_cast<size_t>(kernel));
    const float* stored = values(weight);  // [width, kernel]
    for (int64_t c = 0; c < width; c++)
        for (int64_t i = 0; i < kernel; i++) turned[static_cast<size_t>(i * width + c)] = stored[c * kernel + i];
    const ShortConvolutionArgs args{at(output),
                                    at(x),
                                    layer_states(states_, slot_floats_, state_offsets_[static_cast<size_t>(state)]),
                                    width,
                                    kernel,
                                    turned.data(),
                                    bias < 0 ? nullptr : values(bias),
                                    activated};
    calls_.push_back([this, args](const Step& step, Share& share) {
        ShortConvolutionArgs now = args;
        now.states = states(args.states, step);
        kernels_.short_convolution(now, share);
    });
}

void Executor::selective_scan(Place output, Place x, Place b, Place c, Place steps, int state, int decay, int step_bias,
                              int skip, int heads, int head_size, int groups, int state_size, float least_step,
                              float most_step) {
    recurrent_parts_.back() = true;
    const SelectiveScanArgs args{at(output),
                                 at(x),
                                 at(b),
                                 at(c),
                                 at(steps),
                                 layer_states(states_, slot_floats_, state_offsets_[static_cast<size_t>(state)]),
                                 values(decay),
                                 values(step_bias),
                                 values(skip),
                                 heads,
                                 head_size,
                                 groups,
                                 state_size,
                                 least_step,
                                 most_step};
    calls_.push_back([this, args](const Step& step, Share& share) {
        SelectiveScanArgs now = args;
        now.states = states(args.states, step);
        kernels_.selective_scan(now, share);
    });
}

void Executor::delta_rule(Place output, Place q, Place k, Place v, Place steps, Place rates, int state, int decay,
                          int step_bias, int heads, int key_heads, int key_size, int value_size, bool alternating) {
    recurrent_parts_.back() = true;
    const DeltaRuleArgs args{at(output),
                             at(q),
                             at(k),
                             at(v),
                             at(steps),
                             at(rates),
                             layer_states(states_, slot_floats_, state_offsets_[static_cast<size_t>(state)]),
                             values(decay),
                             values(step_bias),
                             heads,
                             key_heads,
                             key_size,
                             value_size,
                             alternating};
    calls_.push_back([this, args](const Step& step, Share& share) {
        DeltaRuleArgs now = args;
        now.states = states(args.states, step);
        kernels_.delta_rule(now, share);
    });
}

}  // namespace tokenworks::cpu
