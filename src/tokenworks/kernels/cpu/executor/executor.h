// A compiled program: packed weights, buffers, cache, and the list of kernel calls that is one step.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../adapt/adapters.h"
#include "../experts/experts.h"
#include "../linear/linear.h"
#include "../memory.h"
#include "../team.h"

namespace tokenworks::cpu {

// What a matrix of activations has a row for.
enum class Rows { tokens, selected, sequences, merged };

// Columns of a buffer before the buffers have an address: floats from the arena's begin, floats from row to row.
using Place = std::pair<int64_t, int64_t>;

enum class Index { token, known_token, position, axis, zero };

struct RawWeight {
    std::string name, format;
    int64_t out_features, in_features;
    const uint8_t* data;
    size_t bytes;
    const float* row_scales;  // [out_features] or null
};

struct Packed {
    std::vector<PackedMatrix> matrices;
    Region memory;  // of their data
};

// kernels/backend.py: StepBatch.
struct Step {
    int tokens, sequences, selected;
    const int32_t *token_ids, *positions, *row_starts, *block_tables, *logit_rows;
    int table_width;
    // Each may be null.
    const float* features = nullptr;  // [feature_count, feature_width]
    const int32_t* feature_rows = nullptr;
    int feature_count = 0, feature_width = 0;
    const int32_t* axes = nullptr;  // [axis_count, tokens]
    int axis_count = 0;
    const int32_t* ends = nullptr;  // [tokens]
    const float* inputs = nullptr;  // [tokens, input_width]
    int input_width = 0;
    const int32_t* window_starts = nullptr;  // [windows + 1]
    int windows = 0;
    const int32_t* adapters = nullptr;  // [sequences] slot, or -1
    int merged = 1;  // tokens of a merged row
    const int32_t *state_begin = nullptr, *state_rows = nullptr, *state_slots = nullptr;
    int state_writings = 0;

    int rows(Rows kind) const {
        switch (kind) {
            case Rows::tokens: return tokens;
            case Rows::selected: return selected;
            case Rows::sequences: return sequences;
            case Rows::merged: return tokens / merged;
        }
        return 0;
    }
};

struct CacheShape {
    int blocks, block_tokens;
    CacheType type;
    std::vector<std::tuple<int, int, int>> layers;  // kv_heads, head_size, latent columns of K (0: V is kept too)
    int state_slots;
    std::vector<int64_t> states;  // floats of each layer that keeps a state
};

// kernels/program/linear.py: LinearHeads.
struct HeadsShape {
    int heads, kept, inputs, outputs;
};

// One expert by the numbers of its matrices and of their biases, -1 where there is none; `number` is the router's.
struct ExpertNumbers {
    int number, gate, up, down, gate_bias, up_bias, down_bias;
};

// What an adapter does to the weight of a matrix's number: down [rank, in_features], up [out_features, rank].
struct RawAdaptation {
    int matrix;
    RawWeight down, up;
    float scale;
};

class Executor {
  public:
    explicit Executor(int threads) : team_(threads), threads_(threads) {}

    // Packs weights into new memory, in their order. Throws std::invalid_argument, with the weight's name, on an
    // unknown format or a wrong size.
    Packed pack(const std::vector<RawWeight>& weights);
    std::vector<uint64_t> checksums(const std::vector<std::pair<const uint8_t*, size_t>>& pieces);
    Region copy(const uint8_t* data, size_t bytes);  // to large pages, where the system has them
    int use(const PackedMatrix& matrix);  // matrix number; its data must stay where they are
    int vector(const RawWeight& weight);  // vector number; a copy, decoded to float32; throws as pack does

    // Buffers and cache, before any instruction.
    void allocate(int64_t arena_floats, int64_t prepared_rows, int64_t prepared_width, int merged,
                  const CacheShape& cache);

    // Instructions, in order.
    void barrier();
    void pause();  // the next part of a step begins
    void input(Place output, int width);
    void inject(Place x, int width, int offset, bool replace);
    void merge(Place output, Place x, int width, int count, bool mean);
    void embed(Rows rows, Place output, int matrix, int width, Index index, float scale);
    void layernorm(Rows rows, Place output, Place x, int width, int weight, int bias, float epsilon);  // bias -1: none
    void rmsnorm(Rows rows, Place output, Place x, int width, int group, int weight, bool wide,
                 float epsilon);  // weight -1: ones
    void prepare(Rows rows, Place x, int width, unsigned forms);
    // Segments: matrix number, vector number of the bias or -1. residual: null for none.
    void linear(Rows rows, Place output, Place x, const Place* residual,
                const std::vector<std::pair<int, int>>& segments);
    // The same for heads that have a product each; matrices: one for each head.
    void prepare_heads(Rows rows, Place output, Place x, const HeadsShape& shape, unsigned forms);
    void linear_heads(Rows rows, Place output, int kept, const std::vector<int>& matrices);
    void rope(Rows rows, Place x, int width, int head_size, int turned, int inverse_frequencies, float scale,
              const std::vector<int32_t>& axes);
    void store(Place k, Place v, int layer);
    void attend(Rows rows, Place output, Place q, Place k, Place v, int layer, int heads, int kv_heads, int head_size, float scale,
                int window, float softcap, bool windows, int sinks, int portion, int portions,
                int latent, int begin, int end, bool chunked);  // sinks: vector, or -1
    void scale(Rows rows, Place output, Place x, int width, float factor);
    void gate(Rows rows, Place output, Place gate, Place up, int width, Activation activation, float limit, float offset);
    // state: number of the layer among those that keep a state; weights are vector numbers, bias -1 for none.
    void short_convolution(Place output, Place x, int state, int width, int kernel, int weight, int bias,
                           bool activated);
    void selective_scan(Place output, Place x, Place b, Place c, Place steps, int state, int decay, int step_bias, int skip,
                        int heads, int head_size, int groups, int state_size, float least_step, float most_step);
    void delta_rule(Place output, Place q, Place k, Place v, Place steps, Place rates, int state, int decay, int step_bias,
                    int heads, int key_heads, int key_size, int value_size, bool alternating);
    void activate(Rows rows, Place output, Place x, int width, Activation activation);
    void add(Rows rows, Place output, Place a, Place b, int width);
    void scale_rows(Rows rows, Place output, Place x, Place by, int width);
    void multiply(Rows rows, Place output, Place x, int width, int weight, bool wide);
    void mix_streams(Rows rows, Place output, Place x, Place coefficients, int width, int inputs, int outputs, float offset);
    void match_magnitude(Rows rows, Place output, Place x, Place like, int width, float least);
    void sparsify(Rows rows, Place output, Place x, int width, float deviations);
    // args: all that does not depend on the step. bias, expert_scales: vector numbers, or -1.
    void route(Rows rows, Place output, Place x, RouteArgs args, int bias, int expert_scales);
    void experts(Rows rows, Place output, Place x, Place routes, const ExpertsShape& shape, int routed,
                 const std::vector<ExpertNumbers>& experts);
    void softcap(Rows rows, Place output, Place x, int width, float cap);
    void select_rows(Place output, Place x, int width);
    void pool(Place output, Place x, int width, bool mean, bool normalise);

    // The result of the instructions so far, which is looked at when it is there.
    void watch(Rows rows, Place x, int width) { watched_.push_back({calls_.size(), rows, x, width}); }

    // Adapters, between steps. A slot's earlier adapter goes. Throws std::invalid_argument for one that does not fit.
    void load_adapter(int slot, const std::vector<RawAdaptation>& adaptations);
    void drop_adapter(int slot);
    int64_t adapter_bytes() const;

    // Parts [first, end). Throws std::invalid_argument if a number in `step` points outside the model or the cache.
    // Uses so many threads, and no others until the next run.
    void run(Step step, int first, int end, int threads);
    void sample(SampleArgs args);  // but for the scratch
    void logprobs(const LogprobsArgs& args);

    float* arena() const { return reinterpret_cast<float*>(arena_.data()); }
    bool finite() const { return finite_; }  // what was watched, in the last run
    int64_t weight_bytes() const { return weight_bytes_; }
    // Rows that each expert has had so far: of every `experts` instruction in order, by the router's number.
    std::vector<std::vector<int64_t>> expert_uses() const;
    int64_t cache_bytes() const { return static_cast<int64_t>(cache_.size() + states_.size()); }
    // Before any instruction: the matrices lie in a mapped file that may be larger than memory.
    void in_file(const uint8_t* file, int descriptor) { store_.emplace(file, descriptor); }
    ExpertStore* expert_store() { return store_ ? &*store_ : nullptr; }  // null: weights are in memory
    unsigned input_form(int matrix) const { return kernels_.input_form(matrices_[static_cast<size_t>(matrix)]); }

  private:
    using Call = std::function<void(const Step&, Share&)>;

    // A linear product, as adapters see it.
    struct Product {
        Rows rows;
        std::vector<int> matrices;
        std::vector<int64_t> columns;  // where each matrix's outputs begin
        Columns x, output;
        std::vector<const LowRank*> maps;  // [slots, matrices]; null: not adapted
        int adapted = 0;                   // maps that are not null
    };
    struct Adapter {
        Region region;
        std::vector<LowRank> maps;
    };
    // The rows whose logits are wanted as a step of their own: those that follow each other are a sequence.
    struct SelectedRows {
        std::vector<int32_t> positions, ends, starts, tables;
        Step step{};
    };
    // AdaptArgs' groups.
    struct AdaptedRows {
        std::vector<int32_t> rows, starts, slots;
        std::vector<TilePlace> places;
    };

    // A kernel's call on as many rows as the step has of that kind; all else in `args` is known before.
    template <class Args>
    void on_rows(void (*kernel)(const Args&, Share&), Rows rows, const Args& args) {
        calls_.push_back([kernel, rows, args](const Step& step, Share& share) {
            Args now = args;
            now.rows = step.rows(rows);
            kernel(now, share);
        });
    }

    void group_rows(const Step& step);
    bool adapts(const Product& product, AdaptArgs& args) const;  // false: there is nothing to do
    void run_adapted(const LinearArgs& args, size_t product, Share& share) const;
    Columns at(Place place) const { return {arena() + place.first, place.second}; }
    Cache cache_of(int layer) const;
    void check(const Step& step, size_t first_part, size_t end_part) const;
    void find_writings(const Step& step);
    void find_selected(const Step& step);
    const Step& step_of(Rows rows, const Step& step) const { return rows == Rows::selected ? selected_.step : step; }
    States states(const States& layer, const Step& step) const;
    const float* values(int vector) const { return vectors_[static_cast<size_t>(vector)].data(); }

    const Kernels& kernels_ = kernels();
    Team team_;
    int threads_;  // of the last run
    std::deque<PackedMatrix> matrices_;
    std::deque<std::vector<float>> vectors_;
    int64_t weight_bytes_ = 0;
    Region arena_, prepared_, cache_, states_, attend_scratch_, sample_scratch_;
    int64_t step_rows_ = 0;  // the most
    Prepared prepared_input_{};
    CacheShape cache_shape_{};
    int64_t block_bytes_ = 0;
    std::vector<int64_t> layer_offsets_;  // of K within a block; V follows
    int64_t token_limit_ = INT64_MAX, position_limit_ = INT64_MAX, axis_limit_ = INT64_MAX;
    int64_t slot_floats_ = 0;             // a slot of states_ has all layers of one state
    std::vector<int64_t> state_offsets_;  // floats, of a layer within a slot
    std::vector<int32_t> write_starts_;   // of the step that runs
    std::deque<std::vector<Segment>> segments_;
    std::deque<std::vector<int32_t>> axes_;
    size_t behind_part_ = 0;
    int behind_ = 0;  // every row of that part is at this position, or behind it
    int merged_ = 1, feature_width_ = 0, axis_count_ = 0;  // what the program asks of a step
    bool windows_ = false, selected_attend_ = false;
    SelectedRows selected_;  // of the step under way
    std::deque<Mixture> mixtures_;
    std::optional<ExpertStore> store_;
    Region experts_scratch_;
    std::deque<Product> products_;
    std::map<int, Adapter> adapters_;  // by slot
    AdaptedRows adapted_tokens_, adapted_selected_;  // of the step under way
    std::vector<int32_t> row_slots_;
    Region adapter_inner_;
    int adapter_inner_width_ = 0;
    std::vector<Call> calls_;
    struct Watched {
        size_t end;  // of the calls that make it
        Rows rows;
        Place x;
        int width;
    };
    std::vector<Watched> watched_;
    std::atomic<bool> finite_{true};
    std::vector<size_t> part_starts_{0};  // in calls_
    std::vector<int> input_widths_{0};    // of each part; 0: it takes none
    std::vector<bool> recurrent_parts_{false};
};

}  // namespace tokenworks::cpu
