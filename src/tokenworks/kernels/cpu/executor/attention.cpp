// The executor's instructions for rotary positions and attention.
#include "executor.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "../attend/scratch.h"

namespace tokenworks::cpu {
namespace {

void fill(AttendArgs& args, const Step& step) {
    args.rows = step.tokens;
    args.sequences = step.sequences;
    args.positions = step.positions;
    args.ends = step.ends;
    args.row_starts = step.row_starts;
    args.block_tables = step.block_tables;
    args.table_width = step.table_width;
}

}  // namespace

void Executor::rope(Rows rows, Place x, int width, int head_size, int turned, int inverse_frequencies, float scale,
                    const std::vector<int32_t>& axes) {
    const float* frequencies = vectors_[static_cast<size_t>(inverse_frequencies)].data();
    RopeArgs args{0, at(x), width, head_size, turned, frequencies, scale, nullptr, nullptr, nullptr};
    selected_attend_ |= rows == Rows::selected;
    if (!axes.empty()) {
        if (rows == Rows::selected) throw std::invalid_argument("selected rows have no positions along axes");
        if (axes.size() > most_frequencies) throw std::invalid_argument("a head is too large for positions along axes");
        args.axis_of = axes_.emplace_back(axes).data();
        axis_count_ = std::max(axis_count_, 1 + *std::max_element(axes.begin(), axes.end()));
    }
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        RopeArgs now = args;
        now.rows = step.rows(rows);
        now.positions = step_of(rows, step).positions;
        now.axes = step.axes;
        kernels_.rope(now, share);
    });
}

void Executor::store(Place k, Place v, int layer) {
    AttendArgs args{};
    args.k = at(k);
    args.v = at(v);
    args.cache = cache_of(layer);
    std::tie(args.kv_heads, args.head_size, args.latent) = cache_shape_.layers[static_cast<size_t>(layer)];
    calls_.push_back([this, args](const Step& step, Share& share) {
        AttendArgs now = args;
        fill(now, step);
        kernels_.store(now, share);
    });
}

void Executor::attend(Rows rows, Place output, Place q, Place k, Place v, int layer, int heads, int kv_heads,
                      int head_size, float scale, int window, float softcap, bool windows, int sinks, int portion, int portions,
                      int latent, int begin, int end, bool chunked) {
    windows_ |= windows;
    selected_attend_ |= rows == Rows::selected;
    AttendArgs args{};
    args.output = at(output);
    args.q = at(q);
    args.k = at(k);
    args.v = at(v);
    args.heads = heads;
    args.kv_heads = kv_heads;
    args.head_size = head_size;
    args.scale = scale;
    args.window = window;
    args.chunked = chunked;
    args.softcap = softcap;
    args.latent = latent;
    if (begin || end) {
        behind_ = std::max({behind_, begin, end});
        behind_part_ = part_starts_.size() - 1;
    }
    args.begin = begin;
    args.end = end;
    args.sinks = sinks < 0 ? nullptr : vectors_[static_cast<size_t>(sinks)].data();
    args.portion = portion;
    args.portions = portions;
    args.cache = cache_of(layer);
    const int64_t positions = std::max(int64_t{cache_shape_.blocks} * cache_shape_.block_tokens, step_rows_);
    args.partials = attend_partials(heads, positions);
    const int64_t bytes = attend_floats(heads, kv_heads, head_size, team_.size(), positions) * int64_t{sizeof(float)};
    if (bytes > static_cast<int64_t>(attend_scratch_.size()))
        attend_scratch_ = Region(static_cast<size_t>(bytes), false);
    calls_.push_back([this, rows, args, windows](const Step& step, Share& share) {
        AttendArgs now = args;
        fill(now, step_of(rows, step));
        if (windows) {
            now.sequences = step.windows;
            now.row_starts = step.window_starts;
        }
        now.scratch = reinterpret_cast<float*>(attend_scratch_.data());
        kernels_.attend(now, share);
    });
}

}  // namespace tokenworks::cpu
