// How the executor runs a step: checked, then call after call on the threads that are asked for.
#include "executor.h"

#include <algorithm>
#include <stdexcept>

#include "../sample/scratch.h"

namespace tokenworks::cpu {

void Executor::barrier() {
    calls_.push_back([](const Step&, Share& share) { share.barrier(); });
}

void Executor::pause() {
    part_starts_.push_back(calls_.size());
    input_widths_.push_back(0);
    recurrent_parts_.push_back(false);
}

void Executor::check(const Step& step, size_t first_part, size_t end_part) const {
    const auto require = [](bool holds, const char* what) {
        if (!holds) throw std::invalid_argument(what);
    };
    for (size_t p = first_part; p < end_part; p++)
        require(!recurrent_parts_[p] || step.state_begin, "a model with recurrent layers needs states");
    require(step.row_starts[0] == 0 && step.row_starts[step.sequences] == step.tokens,
            "row_starts must go from 0 to the number of tokens");
    for (int t = 0; t < step.tokens; t++) {
        require(step.token_ids[t] >= 0 && step.token_ids[t] < token_limit_, "a token id is outside the vocabulary");
        require(step.positions[t] >= 0 && step.positions[t] < position_limit_, "a position is outside the model's range");
    }
    require(step.tokens % merged_ == 0, "the number of tokens is no multiple of those that are merged");
    for (size_t p = first_part; p < end_part; p++)
        require(!input_widths_[p] || (step.inputs && step.input_width == input_widths_[p]),
                "the inputs are missing or too narrow");
    const bool reads_kept = behind_ && first_part <= behind_part_ && behind_part_ < end_part;
    require(!step.features || step.feature_width >= feature_width_, "the features are too narrow");
    require(!step.axes || step.axis_count >= axis_count_, "axes are missing");
    if (step.axes && axis_limit_ < INT64_MAX)
        for (int t = 0; t < step.tokens; t++)
            require(step.axes[t] >= 0 && step.axes[t] < axis_limit_, "a place is outside its table");
    for (int f = 0; f < step.feature_count; f++)
        require(step.feature_rows[f] >= 0 && step.feature_rows[f] < step.tokens, "a feature row is outside the step");
    if (windows_) {
        require(step.window_starts && step.window_starts[0] == 0 && step.window_starts[step.windows] == step.tokens,
                "window_starts must go from 0 to the number of tokens");
        for (int w = 0; w < step.windows; w++)
            require(step.window_starts[w] < step.window_starts[w + 1], "a window without rows");
    }
    for (int r = 0; r < step.selected; r++)
        require(step.logit_rows[r] >= 0 && step.logit_rows[r] < step.tokens, "a logit row is outside the step");
    for (int r = 1; r < step.selected && selected_attend_; r++)
        require(step.logit_rows[r - 1] < step.logit_rows[r], "logit rows must ascend");
    for (int s = 0; s < step.sequences; s++) {
        require(!step.adapters || step.adapters[s] == -1 || adapters_.contains(step.adapters[s]),
                "there is no adapter in a sequence's slot");
        const int begin = step.row_starts[s], end = step.row_starts[s + 1];
        require(begin < end, "a sequence without rows");
        if (layer_offsets_.empty()) continue;
        require(!reads_kept || step.positions[begin] >= behind_, "a token lies before what it reads");
        for (int t = begin + 1; t < end; t++)
            require(step.positions[t] == step.positions[t - 1] + 1, "a sequence's positions must be consecutive");
        for (int t = begin; step.ends && t < end; t++)
            require(step.ends[t] > step.positions[t] && step.ends[t] <= step.positions[end - 1] + 1 &&
                        (t == begin || step.ends[t] >= step.ends[t - 1]),
                    "what a token sees must end behind it, not before the token before it, and within its sequence");
        const int last = step.positions[end - 1] / cache_shape_.block_tokens;
        require(last < step.table_width, "a position is beyond its block table");
        for (int i = 0; i <= last; i++) {
            const int32_t block = step.block_tables[int64_t{s} * step.table_width + i];
            require(block >= 0 && block < cache_shape_.blocks, "a block table entry is outside the cache");
        }
    }
}

void Executor::run(Step step, int first_part, int end_part, int threads) {
    step.merged = merged_;
    const auto first = static_cast<size_t>(first_part), last = static_cast<size_t>(end_part);
    if (first_part < 0 || end_part <= first_part || last > part_starts_.size())
        throw std::invalid_argument("there is no such part");
    if (threads < 1 || threads > team_.size()) throw std::invalid_argument("there are not so many threads");
    check(step, first, last);
    if (step.adapters) group_rows(step);
    if (selected_attend_) find_selected(step);
    const size_t begin = part_starts_[first], end = last == part_starts_.size() ? calls_.size() : part_starts_[last];
    if (step.state_begin) find_writings(step);
    finite_ = true;
    threads_ = threads;
    team_.run(threads_, [&](Share& share) {
        for (size_t i = begin; i < end; i++) calls_[i](step, share);
        for (const Watched& each : watched_) {
            if (each.end != end) continue;
            share.barrier();
            kernels_.finite({step.rows(each.rows), at(each.x), each.width, &finite_}, share);
        }
    });
}

void Executor::sample(SampleArgs args) {
    const size_t bytes = static_cast<size_t>(team_.size() * sample_thread_bytes(args.vocabulary));
    if (bytes > sample_scratch_.size()) sample_scratch_ = Region(bytes, false);
    args.scratch = reinterpret_cast<char*>(sample_scratch_.data());
    team_.run(std::clamp(args.rows, 1, threads_), [&](Share& share) { kernels_.sample(args, share); });
}

void Executor::logprobs(const LogprobsArgs& args) {
    team_.run(std::clamp(args.rows, 1, threads_), [&](Share& share) { kernels_.logprobs(args, share); });
}

}  // namespace tokenworks::cpu
