// The table of operations as the CPU runs it: one argument struct per instruction of kernels/program, and one table
// of kernels per instruction set. dispatch.cpp fills the tables and is the only place that chooses one.
//
// Rules for a kernel
// - It is called by every thread of the team with its own Share and does that thread's part of the work. Row-wise
//   kernels split by share.rows(n); others may use share.take() or share.rows() over whatever they like.
// - Each output element is computed by the same arithmetic in the same order whatever the number of rows, the row's
//   place, or the number of threads, bit for bit, within one instruction set.
// - Files for one instruction set are compiled with its flags: everything in them but the one fill function lives in an
//   anonymous namespace, and they use no std templates or inline functions that the linker could share with other files
//   (it would keep one copy, maybe the one that older machines cannot run).
#pragma once

#include <atomic>
#include <cstdint>

#include "team.h"

namespace tokenworks::cpu {

// Some columns of a matrix of activations: row r begins at data + r * stride.
struct Columns {
    float* data;
    int64_t stride;
    float* row(int64_t r) const { return data + r * stride; }
};

enum class Activation { silu, gelu_tanh, gelu, gelu_quick, relu2, sigmoid, none };

struct PackedMatrix;  // linear/packed.h; weights, [out_features, in_features]

// Writes row `row` of a packed weight, in_features floats. Any instruction set.
void dequantise_row(const PackedMatrix& matrix, int64_t row, float* out);

// Row-wise.
struct InputArgs {
    int rows;
    Columns output;
    int width;
    const float* inputs;  // [rows, width]
};

// Row-wise, in place.
struct InjectArgs {
    int rows;
    Columns x;
    int width;
    bool replace;  // else add
    int offset;
    const float* features;  // [feature_count, feature_stride]; columns from `offset` on
    int64_t feature_stride;
    const int32_t* feature_rows;  // [feature_count]
    int feature_count;
};

// Row r of the output is made from rows r * count .. (r + 1) * count of x. Row-wise in the output.
struct MergeArgs {
    int rows;
    Columns output, x;
    int width;  // of x
    int count;
    bool mean;  // else side by side
};

// Row-wise. Rows beyond the table are the caller's mistake: ids are checked before a step.
struct EmbedArgs {
    int rows;
    Columns output;
    const PackedMatrix* table;
    int width;
    const int32_t* index;  // [rows] table row of each row; null: always row 0
    float scale;
    int64_t limit;  // row 0 is that of larger indices too
};

// Row-wise.
struct RmsNormArgs {
    int rows;
    Columns output, x;  // may be the same columns
    int width;          // a multiple of group
    int group;
    const float* weight;  // [group], or if wide [width]; null: ones
    bool wide;
    float epsilon;
};

// Row-wise.
struct LayerNormArgs {
    int rows;
    Columns output, x;
    int width;
    const float *weight, *bias;  // [width]
    float epsilon;
};

// Row-wise, in place. width is a multiple of head_size; of each head the pairs (i, i + turned / 2) are turned.
struct RopeArgs {
    int rows;
    Columns x;
    int width, head_size, turned;
    const float* inverse_frequencies;  // [turned / 2]
    float scale;
    const int32_t* positions;          // [rows]
    const int32_t* axis_of;            // [head_size / 2] or null
    const int32_t* axes;               // [axis, rows] or null: frequency i turns by axes[axis_of[i]], below 2^24
};
constexpr int most_frequencies = 1024;  // with axes

enum class CacheType { float32, float16, bfloat16, int8 };

// One layer's part of the KV cache. Block b's K begins at k + b * block_stride bytes, its V at v + b * block_stride; each
// is cache_bytes of attend/scratch.h long, and its inner order belongs to attend/ alone.
struct Cache {
    char *k, *v;  // null: no cache (encoders)
    int64_t block_stride;
    int block_tokens;
    CacheType type;
};

struct AttendArgs {
    int rows;
    int sequences;
    Columns output, q, k, v;
    int heads, kv_heads, head_size;
    float scale;
    int window;     // 0: none
    bool chunked;   // a window begins at a multiple of its length
    float softcap;  // 0: none
    int latent;     // V is these last columns of K, and the cache has no other; 0: V is one of its own
    int begin, end;  // of what every row sees in the cache, where it would see more; end 0: at its own position
    const float* sinks;  // [heads]: one more score of each, that mixes nothing in; or null
    int portion, portions;  // of the rows, as kernels/program/attention.py says
    Cache cache;
    const int32_t* positions;     // [rows]
    const int32_t* ends;          // [rows] or null: what a row sees ends there, not at its own position
    const int32_t* row_starts;    // [sequences + 1]
    const int32_t* block_tables;  // [sequences, table_width]
    int table_width;
    float* scratch;    // attend_floats of attend/scratch.h
    int64_t partials;  // attend_partials
};

// One layer's recurrent states, and which of them a step reads and writes (kernels/backend.py: StateBatch).
struct States {
    float* data;
    int64_t slot_stride;          // floats
    const int32_t* row_starts;    // [sequences + 1]
    const int32_t* begin;         // [sequences] slot; -1: zeros
    const int32_t* write_starts;  // [sequences + 1] sequence s writes write_starts[s] .. write_starts[s + 1]
    const int32_t *rows, *slots;  // of each writing; a sequence's last one is at its last row
    int sequences;

    float* slot(int32_t number) const { return data + number * slot_stride; }
};

// State: the last kernel - 1 rows of x, [kernel - 1, width].
struct ShortConvolutionArgs {
    Columns output, x;
    States states;
    int width, kernel;
    const float* weight;  // [kernel, width]
    const float* bias;    // [width] or null
    bool activated;
};

// State: [heads, state_size, head_size].
struct SelectiveScanArgs {
    Columns output, x, b, c, steps;
    States states;
    const float *decay, *step_bias, *skip;  // [heads]
    int heads, head_size, groups, state_size;
    float least_step, most_step;
};

// State: [heads, key_size, value_size].
struct DeltaRuleArgs {
    Columns output, q, k, v, steps, rates;
    States states;
    const float *decay, *step_bias;  // [heads]
    int heads, key_heads, key_size, value_size;
    bool alternating;  // head h has the q and k of head h % key_heads, not of h / (heads / key_heads)
};

// Row-wise.
struct GateArgs {
    int rows;
    Columns output, gate, up;  // output may be gate or up
    int width;
    Activation activation;
    float limit;   // 0: none; else gate is at most this, up between -this and it
    float offset;  // added to up
};

// Row-wise.
struct ActivateArgs {
    int rows;
    Columns output, x;
    int width;
    Activation activation;
};

// Row-wise; output may be a or b.
struct AddArgs {
    int rows;
    Columns output, a, b;
    int width;
};

// Row-wise; output may be x.
struct ScaleRowsArgs {
    int rows;
    Columns output, x, by;  // by: one column
    int width;
};

// Row-wise; output may be x.
struct MultiplyArgs {
    int rows;
    Columns output, x;
    int width;
    const float* weight;  // [width], or if not wide one number
    bool wide;
};

// Row-wise. kernels/program/streams.py says what each does. The output of the last two may be x.
struct MixStreamsArgs {
    int rows;
    Columns output, x, coefficients;
    int width, inputs, outputs;  // of a stream; how many there are
    float offset;
};
struct MatchMagnitudeArgs {
    int rows;
    Columns output, x, like;
    int width;
    float least;
};
struct SparsifyArgs {
    int rows;
    Columns output, x;
    int width;
    float deviations;
};

// Row-wise. kernels/program/experts.py says what each field of Route means.
struct RouteArgs {
    int rows;
    Columns output, x;
    int experts, top_k;
    bool sigmoid;  // else softmax
    bool normalise;
    float scale;
    const float *bias, *expert_scales;  // [experts] or null
    int groups, kept_groups, group_best;
};
constexpr int most_experts = 1024, most_chosen = 64;  // kernels/check.py checks that there are no more

// Row-wise. output row r = sum over j < top_k, in order, of weights[r, j] * x row places[r, j]; places < 0 are left out.
struct CombineArgs {
    int rows;
    Columns output, x;
    int width;
    const int32_t* places;  // [rows, top_k]
    Columns weights;
    int top_k;
};

// Row-wise.
struct ScaleArgs {
    int rows;
    Columns output, x;
    int width;
    float factor;
};

// Row-wise.
struct SoftcapArgs {
    int rows;
    Columns output, x;
    int width;
    float cap;
};

// Each thread looks at some columns of all rows; whoever finds NaN or infinity clears the flag.
struct FiniteArgs {
    int rows;
    Columns x;
    int width;
    std::atomic<bool>* finite;
};

// Row r of the output is row index[r] of x. Row-wise in the output.
struct SelectRowsArgs {
    int rows;
    Columns output, x;
    int width;
    const int32_t* index;  // [rows]
};

// Row s of the output is made from rows row_starts[s] .. row_starts[s + 1] of x. Row-wise in the output.
struct PoolArgs {
    int sequences;
    Columns output, x;
    int width;
    const int32_t* row_starts;  // [sequences + 1]
    bool mean;                  // else the first row
    bool normalise;
};

// kernels/backend.py says what each field of SampleBatch means.
struct SampleArgs {
    int rows;
    int vocabulary;
    float* logits;  // [rows, vocabulary]; may be overwritten
    const float* temperature;
    const int32_t* top_k;
    const float *top_p, *min_p, *uniform;
    int32_t* token;  // [rows]
    char* scratch;   // sample_thread_bytes of sample/scratch.h, for each thread
};

struct LogprobsArgs {
    int rows;
    int vocabulary;
    const float* logits;  // [rows, vocabulary]
    const int32_t* chosen;
    int top;
    float* chosen_logprob;  // [rows]
    int32_t* rank;          // [rows]
    int32_t* top_token;     // [rows, top]
    float* top_logprob;     // [rows, top]
};

struct PrepareArgs;  // linear/linear.h
struct LinearArgs;
struct PrepareGroupsArgs;
struct LinearGroupsArgs;
struct AdaptArgs;  // adapt/adapters.h

struct Kernels {
    const char* name;
    const char* trouble;  // a set that the machine has and that is left unused, and why; or null
    void (*input)(const InputArgs&, Share&);
    void (*inject)(const InjectArgs&, Share&);
    void (*merge)(const MergeArgs&, Share&);
    void (*embed)(const EmbedArgs&, Share&);
    void (*rmsnorm)(const RmsNormArgs&, Share&);
    void (*layernorm)(const LayerNormArgs&, Share&);
    void (*rope)(const RopeArgs&, Share&);
    void (*store)(const AttendArgs&, Share&);   // row-wise: writes the step's K and V to the cache
    void (*attend)(const AttendArgs&, Share&);  // after store and a barrier; may call share.barrier() itself
    // These begin after a barrier: tokens are taken one after the other, by whatever thread has that head or column.
    void (*short_convolution)(const ShortConvolutionArgs&, Share&);
    void (*selective_scan)(const SelectiveScanArgs&, Share&);
    void (*delta_rule)(const DeltaRuleArgs&, Share&);
    void (*gate)(const GateArgs&, Share&);
    void (*activate)(const ActivateArgs&, Share&);
    void (*add)(const AddArgs&, Share&);
    void (*scale)(const ScaleArgs&, Share&);
    void (*scale_rows)(const ScaleRowsArgs&, Share&);
    void (*multiply)(const MultiplyArgs&, Share&);
    void (*mix_streams)(const MixStreamsArgs&, Share&);
    void (*match_magnitude)(const MatchMagnitudeArgs&, Share&);
    void (*sparsify)(const SparsifyArgs&, Share&);
    void (*route)(const RouteArgs&, Share&);
    void (*combine)(const CombineArgs&, Share&);
    void (*softcap)(const SoftcapArgs&, Share&);
    void (*select_rows)(const SelectRowsArgs&, Share&);
    void (*pool)(const PoolArgs&, Share&);
    void (*finite)(const FiniteArgs&, Share&);
    void (*sample)(const SampleArgs&, Share&);      // may call share.barrier()
    void (*logprobs)(const LogprobsArgs&, Share&);  // may call share.barrier()
    unsigned (*input_form)(const PackedMatrix&);    // what form of its input a weight multiplies: a Form of linear/linear.h
    void (*prepare)(const PrepareArgs&, Share&);    // row-wise: a linear product's input in the forms that are wanted
    void (*linear)(const LinearArgs&, Share&);
    void (*prepare_groups)(const PrepareGroupsArgs&, Share&);  // row-wise: the same for products of groups of rows
    void (*linear_groups)(const LinearGroupsArgs&, Share&);
    void (*adapt_down)(const AdaptArgs&, Share&);  // beside the product, whose input it reads
    void (*adapt_up)(const AdaptArgs&, Share&);    // after both and a barrier: adds to the product's output
    int adapt_rows;                                // of one adapter that a panel is multiplied with at once
};

// The table of the best instruction set this machine has, or of TOKENWORKS_FORCE_ISA (scalar, avx2, avx512, avx512_bf16, amx, neon).
// Throws std::runtime_error for a set that is unknown or that this machine lacks.
const Kernels& kernels();

// What each operation's folder gives: one function per instruction set it has, which puts its kernels in the table. A
// table begins with all scalar kernels (compiled for Arm they are NEON's already); the better sets overwrite some.
#define TOKENWORKS_FILL(operation)           \
    void operation##_scalar(Kernels& table); \
    void operation##_avx2(Kernels& table);   \
    void operation##_avx512(Kernels& table); \
    void operation##_avx512_bf16(Kernels& table); \
    void operation##_amx(Kernels& table);    \
    void operation##_neon(Kernels& table);
TOKENWORKS_FILL(linear)
TOKENWORKS_FILL(embed)
TOKENWORKS_FILL(adapt)        // adapt_down, adapt_up
TOKENWORKS_FILL(features)     // input, inject, merge
TOKENWORKS_FILL(norm)
TOKENWORKS_FILL(rope)
TOKENWORKS_FILL(attend)
TOKENWORKS_FILL(recurrent)    // short_convolution, selective_scan, delta_rule
TOKENWORKS_FILL(gate)         // gate, activate, softcap: functions of an element
TOKENWORKS_FILL(elementwise)  // add, scale, scale_rows, multiply
TOKENWORKS_FILL(streams)      // mix_streams, match_magnitude, sparsify
TOKENWORKS_FILL(experts)      // route, combine
TOKENWORKS_FILL(rows)         // select_rows, pool
TOKENWORKS_FILL(sample)       // sample, logprobs
#undef TOKENWORKS_FILL

// Whether products on AMX's tiles have AVX-512's bits, for a known input: asked before AMX is chosen.
bool linear_amx_agrees();

}  // namespace tokenworks::cpu
