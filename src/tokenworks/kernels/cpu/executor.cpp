#include "executor.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "attend/scratch.h"
#include "sample/scratch.h"

namespace tokenworks::cpu {
namespace {

constexpr int64_t line = 64;

int64_t to_line(int64_t bytes) { return (bytes + line - 1) / line * line; }

// Latent layers are never kept in bytes (kernels/program.py: CacheLayer).
CacheType type_of(CacheType type, int latent) {
    return latent && type == CacheType::int8 ? CacheType::float16 : type;
}

std::invalid_argument named(const RawWeight& weight, const std::string& what) {
    return std::invalid_argument("weight '" + weight.name + "': " + what);
}

// Throws std::invalid_argument, with the weight's name, if it cannot be read.
FileFormat checked_format(const RawWeight& weight) {
    try {
        const FileFormat format = file_format(weight.format);
        const size_t expected = file_bytes(format, weight.in_features) * static_cast<size_t>(weight.out_features);
        if (weight.bytes != expected)
            throw std::invalid_argument("it has " + std::to_string(weight.bytes) +
                                        " bytes where its shape and format need " + std::to_string(expected));
        return format;
    } catch (const std::invalid_argument& error) {
        throw named(weight, error.what());
    }
}

PackedMatrix shape_of(const RawWeight& weight, FileFormat format) {
    // Kernels read E4M3's bits as another float's, where NaN is a number.
    if (format == FileFormat::f8_e4m3 &&
        std::any_of(weight.data, weight.data + weight.bytes, [](uint8_t bits) { return (bits & 0x7f) == 0x7f; }))
        throw named(weight, "it holds NaN");
    try {
        return packed_shape(format, weight.out_features, weight.in_features, weight.row_scales);
    } catch (const std::invalid_argument& error) {
        throw named(weight, error.what());
    }
}

}  // namespace

Packed Executor::pack(const std::vector<RawWeight>& weights) {
    struct Task {
        size_t weight;
        int begin, end;  // panels
    };
    std::vector<FileFormat> formats;
    std::vector<PackedMatrix> shapes;
    std::vector<Task> tasks;
    int64_t bytes = 0;
    for (const RawWeight& weight : weights) {
        formats.push_back(checked_format(weight));
        shapes.push_back(shape_of(weight, formats.back()));
        bytes += shapes.back().bytes();
    }
    Region region(static_cast<size_t>(bytes), true);
    uint8_t* data = region.data();
    for (size_t w = 0; w < weights.size(); w++) {
        shapes[w].data = data;
        data += shapes[w].bytes();
        for (int p = 0; p < shapes[w].panels(); p += 16) tasks.push_back({w, p, std::min(p + 16, shapes[w].panels())});
    }
    team_.run([&](Share& share) {
        for (size_t t; (t = static_cast<size_t>(share.take())) < tasks.size();) {
            const Task& task = tasks[t];
            for (int p = task.begin; p < task.end; p++)
                pack_panel(formats[task.weight], weights[task.weight].data, weights[task.weight].row_scales,
                           shapes[task.weight], p);
        }
    });
    return {std::move(shapes), std::move(region)};
}

std::vector<uint64_t> Executor::checksums(const std::vector<std::pair<const uint8_t*, size_t>>& pieces) {
    std::vector<uint64_t> sums(pieces.size());
    team_.run([&](Share& share) {
        for (size_t i; (i = static_cast<size_t>(share.take())) < pieces.size();)
            sums[i] = checksum(pieces[i].first, pieces[i].second);
    });
    return sums;
}

Region Executor::copy(const uint8_t* data, size_t bytes) {
    constexpr size_t piece = size_t{2} << 20;
    Region region(bytes, true);
    team_.run([&](Share& share) {
        for (size_t at; (at = static_cast<size_t>(share.take()) * piece) < bytes;)
            std::memcpy(region.data() + at, data + at, std::min(piece, bytes - at));
    });
    return region;
}

int Executor::use(const PackedMatrix& matrix) {
    matrices_.push_back(matrix);
    weight_bytes_ += matrix.bytes();
    return static_cast<int>(matrices_.size()) - 1;
}

int Executor::vector(const RawWeight& weight) {
    const FileFormat format = checked_format(weight);
    const int64_t elements = weight.out_features * weight.in_features;
    std::vector<float> values(static_cast<size_t>(elements));
    decode(format, weight.data, elements, values.data());
    vectors_.push_back(std::move(values));
    weight_bytes_ += elements * static_cast<int64_t>(sizeof(float));
    return static_cast<int>(vectors_.size()) - 1;
}

void Executor::allocate(int64_t arena_floats, int64_t prepared_rows, int64_t prepared_width, int merged,
                        const CacheShape& cache) {
    merged_ = merged;
    arena_ = Region(static_cast<size_t>(arena_floats) * sizeof(float), true);
    step_rows_ = prepared_rows;
    const int64_t blocks = prepared_rows * ((prepared_width + 31) / 32);
    const int64_t codes = blocks * 32, facts = to_line(blocks * static_cast<int64_t>(sizeof(BlockFacts)));
    prepared_ = Region(static_cast<size_t>(codes + facts + codes * static_cast<int64_t>(sizeof(float))), true);
    uint8_t* data = prepared_.data();
    prepared_input_ = {reinterpret_cast<int8_t*>(data), reinterpret_cast<BlockFacts*>(data + codes),
                       reinterpret_cast<float*>(data + codes + facts)};

    // Block after block, and in each all layers: a block is one piece, so a cache in use touches no more than it fills.
    cache_shape_ = cache;
    for (auto [kv_heads, head_size, latent] : cache.layers) {
        layer_offsets_.push_back(block_bytes_);
        if (cache.type == CacheType::int8 && !latent && head_size > largest_byte_head)
            throw std::invalid_argument("a cache of int8 takes heads of at most " + std::to_string(largest_byte_head) +
                                        " elements, and these have " + std::to_string(head_size));
        const CacheType type = type_of(cache.type, latent);
        block_bytes_ += (latent ? 1 : 2) * to_line(tokenworks::cpu::cache_bytes(type, kv_heads, head_size, cache.block_tokens));
    }
    cache_ = Region(static_cast<size_t>(block_bytes_ * cache.blocks), false);
    for (const int64_t floats : cache.states) {
        state_offsets_.push_back(slot_floats_);
        slot_floats_ += to_line(floats * int64_t{sizeof(float)}) / int64_t{sizeof(float)};
    }
    states_ = Region(static_cast<size_t>(slot_floats_ * cache.state_slots) * sizeof(float), false);
}

Cache Executor::cache_of(int layer) const {
    if (layer < 0) return {nullptr, nullptr, 0, 0, CacheType::float32};
    const auto index = static_cast<size_t>(layer);
    const int64_t end = index + 1 < layer_offsets_.size() ? layer_offsets_[index + 1] : block_bytes_;
    char* k = reinterpret_cast<char*>(cache_.data()) + layer_offsets_[index];
    const int latent = std::get<2>(cache_shape_.layers[index]);
    return {k, latent ? k : k + (end - layer_offsets_[index]) / 2, block_bytes_, cache_shape_.block_tokens,
            type_of(cache_shape_.type, latent)};
}

void Executor::barrier() {
    calls_.push_back([](const Step&, Share& share) { share.barrier(); });
}

void Executor::pause() { part_starts_.push_back(calls_.size()); }

void Executor::input(Place output, int width) {
    input_width_ = width;
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
    const MergeArgs args{0, at(output), at(x), width, count, mean};
    calls_.push_back([this, args](const Step& step, Share& share) {
        MergeArgs now = args;
        now.rows = step.rows(Rows::merged);
        kernels_.merge(now, share);
    });
}

void Executor::embed(Rows rows, Place output, int matrix, int width, Index index, float scale) {
    const PackedMatrix& table = matrices_[static_cast<size_t>(matrix)];
    if (index == Index::token) token_limit_ = std::min(token_limit_, table.out_features);
    if (index == Index::position) position_limit_ = std::min(position_limit_, table.out_features);
    if (index == Index::axis) axis_limit_ = std::min(axis_limit_, table.out_features);
    EmbedArgs args{0, at(output), &table, width, nullptr, scale};
    calls_.push_back([this, rows, args, index](const Step& step, Share& share) {
        EmbedArgs now = args;
        now.rows = step.rows(rows);
        now.index = index == Index::token      ? step.token_ids
                    : index == Index::position ? step.positions
                    : index == Index::axis     ? step.axes
                                               : nullptr;
        kernels_.embed(now, share);
    });
}

void Executor::rmsnorm(Rows rows, Place output, Place x, int width, int group, int weight, bool wide, float epsilon) {
    const RmsNormArgs args{0, at(output), at(x), width, group, values(weight), wide, epsilon};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        RmsNormArgs now = args;
        now.rows = step.rows(rows);
        kernels_.rmsnorm(now, share);
    });
}

void Executor::layernorm(Rows rows, Place output, Place x, int width, int weight, int bias, float epsilon) {
    const float* shift = bias < 0 ? vectors_.emplace_back(static_cast<size_t>(width), 0.0f).data()
                                  : vectors_[static_cast<size_t>(bias)].data();
    const LayerNormArgs args{0, at(output), at(x), width, vectors_[static_cast<size_t>(weight)].data(), shift, epsilon};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        LayerNormArgs now = args;
        now.rows = step.rows(rows);
        kernels_.layernorm(now, share);
    });
}

void Executor::prepare(Rows rows, Place x, int width, bool quantised, bool floats) {
    const PrepareArgs args{0, at(x), width, quantised, floats, prepared_input_};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        PrepareArgs now = args;
        now.rows = step.rows(rows);
        kernels_.prepare(now, share);
    });
}

void Executor::linear(Rows rows, Place output, Place x, const Place* residual,
                      const std::vector<std::pair<int, int>>& segments) {
    std::vector<Segment>& stacked = segments_.emplace_back();
    Product& product = products_.emplace_back();
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
    calls_.push_back([this, rows, args, &product](const Step& step, Share& share) {
        LinearArgs now = args;
        now.rows = step.rows(rows);
        AdaptArgs adapting;
        const bool adapts = step.adapters && this->adapts(rows, product, adapting);
        if (adapts) kernels_.adapt_down(adapting, share);
        kernels_.linear(now, share);
        if (!adapts) return;
        share.barrier();
        kernels_.adapt_up(adapting, share);
    });
}

void Executor::rope(Rows rows, Place x, int width, int head_size, int turned, int inverse_frequencies, float scale,
                    const std::vector<int32_t>& axes) {
    const float* frequencies = vectors_[static_cast<size_t>(inverse_frequencies)].data();
    RopeArgs args{0, at(x), width, head_size, turned, frequencies, scale, nullptr, nullptr, nullptr};
    if (!axes.empty()) {
        if (axes.size() > most_frequencies) throw std::invalid_argument("a head is too large for positions along axes");
        args.axis_of = axes_.emplace_back(axes).data();
        axis_count_ = std::max(axis_count_, 1 + *std::max_element(axes.begin(), axes.end()));
    }
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        RopeArgs now = args;
        now.rows = step.rows(rows);
        now.positions = step.positions;
        now.axes = step.axes;
        kernels_.rope(now, share);
    });
}

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

void Executor::attend(Place output, Place q, Place k, Place v, int layer, int heads, int kv_heads, int head_size,
                      float scale, int window, float softcap, bool windows, int sinks, int portion, int portions,
                      int latent) {
    windows_ |= windows;
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
    args.softcap = softcap;
    args.latent = latent;
    args.sinks = sinks < 0 ? nullptr : vectors_[static_cast<size_t>(sinks)].data();
    args.portion = portion;
    args.portions = portions;
    args.cache = cache_of(layer);
    const int64_t positions = std::max(int64_t{cache_shape_.blocks} * cache_shape_.block_tokens, step_rows_);
    args.partials = attend_partials(heads, positions);
    const int64_t bytes = attend_floats(heads, kv_heads, head_size, team_.size(), positions) * int64_t{sizeof(float)};
    if (bytes > static_cast<int64_t>(attend_scratch_.size()))
        attend_scratch_ = Region(static_cast<size_t>(bytes), false);
    calls_.push_back([this, args, windows](const Step& step, Share& share) {
        AttendArgs now = args;
        fill(now, step);
        if (windows) {
            now.sequences = step.windows;
            now.row_starts = step.window_starts;
        }
        now.scratch = reinterpret_cast<float*>(attend_scratch_.data());
        kernels_.attend(now, share);
    });
}

void Executor::gate(Rows rows, Place output, Place gate, Place up, int width, Activation activation, float limit,
                    float offset) {
    const GateArgs args{0, at(output), at(gate), at(up), width, activation, limit, offset};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        GateArgs now = args;
        now.rows = step.rows(rows);
        kernels_.gate(now, share);
    });
}

void Executor::activate(Rows rows, Place output, Place x, int width, Activation activation) {
    const ActivateArgs args{0, at(output), at(x), width, activation};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        ActivateArgs now = args;
        now.rows = step.rows(rows);
        kernels_.activate(now, share);
    });
}

void Executor::add(Rows rows, Place output, Place a, Place b, int width) {
    const AddArgs args{0, at(output), at(a), at(b), width};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        AddArgs now = args;
        now.rows = step.rows(rows);
        kernels_.add(now, share);
    });
}

void Executor::scale(Rows rows, Place output, Place x, int width, float factor) {
    const ScaleArgs args{0, at(output), at(x), width, factor};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        ScaleArgs now = args;
        now.rows = step.rows(rows);
        kernels_.scale(now, share);
    });
}

void Executor::softcap(Rows rows, Place output, Place x, int width, float cap) {
    const SoftcapArgs args{0, at(output), at(x), width, cap};
    calls_.push_back([this, rows, args](const Step& step, Share& share) {
        SoftcapArgs now = args;
        now.rows = step.rows(rows);
        kernels_.softcap(now, share);
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

void Executor::check(const Step& step) const {
    const auto require = [](bool holds, const char* what) {
        if (!holds) throw std::invalid_argument(what);
    };
    if (!state_offsets_.empty()) require(step.state_begin, "a model with recurrent layers needs states");
    require(step.row_starts[0] == 0 && step.row_starts[step.sequences] == step.tokens,
            "row_starts must go from 0 to the number of tokens");
    for (int t = 0; t < step.tokens; t++) {
        require(step.token_ids[t] >= 0 && step.token_ids[t] < token_limit_, "a token id is outside the vocabulary");
        require(step.positions[t] >= 0 && step.positions[t] < position_limit_, "a position is outside the model's range");
    }
    require(step.tokens % merged_ == 0, "the number of tokens is no multiple of those that are merged");
    require(!input_width_ || (step.inputs && step.input_width == input_width_), "the inputs are missing or too narrow");
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
    for (int s = 0; s < step.sequences; s++) {
        require(!step.adapters || step.adapters[s] == -1 || adapters_.contains(step.adapters[s]),
                "there is no adapter in a sequence's slot");
        const int begin = step.row_starts[s], end = step.row_starts[s + 1];
        require(begin < end, "a sequence without rows");
        if (layer_offsets_.empty()) continue;
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

void Executor::run(Step step, int part) {
    step.merged = merged_;
    check(step);
    if (step.adapters) group_rows(step);
    const int parts = static_cast<int>(part_starts_.size());
    if (part < -1 || part >= parts) throw std::invalid_argument("there is no such part");
    const size_t begin = part < 0 ? 0 : part_starts_[static_cast<size_t>(part)];
    const size_t end = part < 0 || part + 1 == parts ? calls_.size() : part_starts_[static_cast<size_t>(part) + 1];
    if (!state_offsets_.empty()) find_writings(step);
    finite_ = true;
    team_.run([&](Share& share) {
        for (size_t i = begin; i < end; i++) calls_[i](step, share);
        if (!watched_.width || end < calls_.size()) return;
        share.barrier();
        kernels_.finite({step.rows(watched_.rows), at(watched_.x), watched_.width, &finite_}, share);
    });
}

void Executor::sample(SampleArgs args) {
    const size_t bytes = static_cast<size_t>(team_.size() * sample_thread_bytes(args.vocabulary));
    if (bytes > sample_scratch_.size()) sample_scratch_ = Region(bytes, false);
    args.scratch = reinterpret_cast<char*>(sample_scratch_.data());
    team_.run([&](Share& share) { kernels_.sample(args, share); });
}

void Executor::logprobs(const LogprobsArgs& args) {
    team_.run([&](Share& share) { kernels_.logprobs(args, share); });
}

}  // namespace tokenworks::cpu
