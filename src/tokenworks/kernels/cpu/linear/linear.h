// A linear product in two instructions: prepare brings the input into the form that the weights' kernels multiply, then
// linear multiplies. Several products may share one prepared input.
//
// Prepared rows lie in tiles of 16, 8, 4, 2 and 1 rows: all the full sixteens, then one of each smaller height that the
// number of rows needs. A kernel keeps a whole tile's sums in registers while a panel of weights streams past.
#pragma once

#include <utility>

#include "../ahead.h"
#include "../kernels.h"
#include "packed.h"

namespace tokenworks::cpu {

constexpr int tile_heights[] = {1, 2, 4, 8, 16};  // index: log2

// What a kernel needs to know about 32 quantised inputs besides their codes. Weights' codes are multiplied as unsigned
// numbers, which are their number plus a zero of 8 (u4), 12 (e2m1) or 128 (i8); what that adds to a block's sum is taken
// away by beginning the sum at -zero times the sum of the inputs' codes.
struct BlockFacts {
    float scale;
    float scaled_sum;  // scale * sum of the codes: for minimums
    int32_t minus_8, minus_12, minus_128;
    int32_t minus_12_halves[2], minus_128_halves[2];  // of inputs 0-15 and 16-31: for blocks of 16
};

inline BlockFacts facts_of(float scale, int32_t low, int32_t high) {
    const int32_t sum = low + high;
    return {scale,     scale * static_cast<float>(sum), -8 * sum, -12 * sum, -128 * sum, {-12 * low, -12 * high},
            {-128 * low, -128 * high}};
}

// The forms that an input is multiplied in, as bits. Each weight wants one of them (input_form).
enum Form : unsigned { code_form = 1, bfloat_form = 2, float_form = 4 };

// A tile of height h that begins at row b has its data at offset b * (elements of a row) of each array:
// codes and bfloats [in_features / 32, h, 32], facts [in_features / 32, h], floats [in_features, h]. In the last 32 bfloats
// zeros stand for inputs that there are not.
struct Prepared {
    int8_t* codes;
    BlockFacts* facts;
    uint16_t* bfloats;
    float* floats;
};

// Where a row is: its tile's first row and height, and its number in it.
struct TilePlace {
    int begin, height, in_tile;
};

TilePlace place_of(int row, int rows);

struct PrepareArgs {
    int rows;
    Columns x;
    int width;
    unsigned forms;  // that are wanted
    Prepared prepared;
};

// One of the stacked weights of a product, and where its outputs begin.
struct Segment {
    const PackedMatrix* weight;
    const float* bias;  // [out_features] or null
    int64_t column;
};

struct LinearArgs {
    int rows;
    Columns output;
    const float* residual;  // null, or added to the product: same shape as the output
    int64_t residual_stride;
    Prepared x;
    const Segment* segments;
    int segment_count;
    bool apart = false;  // each segment has an input of its own; in x they follow each other
    Ahead* ahead = nullptr;  // what this thread will read next, or null
};

// Rows in groups, each with products of its own (the rows that chose an expert): group g has rows starts[g] ..
// starts[g + 1], prepared as if they were all the rows there are. `of` are the rows of x that they come from.
struct PrepareGroupsArgs {
    int groups;
    const int32_t* starts;  // [groups + 1]
    const int32_t* of;      // [starts[groups]]; null: rows in order
    Columns x;
    int width;
    unsigned forms;
    Prepared prepared;
};

struct LinearGroupsArgs {
    int groups;
    const int32_t* starts;
    bool one_row;  // every group's only row is the same, prepared once
    Columns output;
    Prepared x;
    const Segment* segments;  // [groups, segment_count]
    int segment_count;
};

// Where in `prepared` the data of row `row` begin, if rows of `width` come before it.
inline Prepared from_row(const Prepared& prepared, int64_t row, int64_t width) {
    const int64_t blocks = (width + 31) / 32;
    return {prepared.codes + row * blocks * 32, prepared.facts + row * blocks, prepared.bfloats + row * blocks * 32,
            prepared.floats + row * width};
}

// --- What an instruction set gives ---

// Memory that will be read soon: with every 32 inputs a kernel begins to read so many bytes more of it (Ahead). Kernels
// of machines on which that gains nothing leave it.
struct Fetch {
    const uint8_t* data;
    int64_t block_bytes;
};

// Products of a panel with a tile, whose data x begins with: out[row of tile, 16] = sum over k.
using TileKernel = void (*)(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, const Fetch& fetch,
                            float* out);

// Products of a panel with `count` consecutive tiles of 16 rows: out[tile, row of tile, 16].
using TilesKernel = void (*)(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, int count, float* out);
constexpr int tiles_at_once = 8;  // at most

// Writes a tile's sums out: output row r, [columns] = sums[r] * scale * row_scales + bias + residual row r; row_scales,
// bias and residual may be null.
struct FinishArgs {
    const float* sums;  // [height, 16]
    float scale;
    const float* row_scales;  // [16]
    int height, columns;
    Columns output;
    const float* bias;  // [columns]
    const float* residual;
    int64_t residual_stride;
};

struct LinearKernels {
    // Quantises 32 floats to codes -127..127 with one scale.
    void (*quantise_block)(const float* x, int8_t* codes, BlockFacts* facts);
    void (*finish)(const FinishArgs& args);
    // Rounds 32 floats to bfloat16. Null: this set multiplies weights of bfloat16 with floats.
    void (*round_block)(const float* x, uint16_t* bfloats);
    TileKernel tiles[layout_count][5];  // by layout and log2 of the tile's height
    TilesKernel many[layout_count];     // null: one by one
};

// tiles of a LinearKernels from a template: kernel<height, layout>::run.
template <template <int, Layout> typename Kernel, int... l>
constexpr void fill_tiles(LinearKernels& kernels, std::integer_sequence<int, l...>) {
    ((kernels.tiles[l][0] = Kernel<1, Layout{l}>::run, kernels.tiles[l][1] = Kernel<2, Layout{l}>::run,
      kernels.tiles[l][2] = Kernel<4, Layout{l}>::run, kernels.tiles[l][3] = Kernel<8, Layout{l}>::run,
      kernels.tiles[l][4] = Kernel<16, Layout{l}>::run),
     ...);
}

// --- The parts that are the same for all of them ---
static inline Form input_form(const PackedMatrix& weight, const LinearKernels& kernels) {
    if (weight.quantised()) return code_form;
    return weight.layout == Layout::bf16 && kernels.round_block ? bfloat_form : float_form;
}
void run_prepare(const PrepareArgs& args, Share& share, const LinearKernels& kernels);
void run_linear(const LinearArgs& args, Share& share, const LinearKernels& kernels);
void run_prepare_groups(const PrepareGroupsArgs& args, Share& share, const LinearKernels& kernels);
void run_linear_groups(const LinearGroupsArgs& args, Share& share, const LinearKernels& kernels);

// Puts a set's kernels in the table of operations.
template <const LinearKernels& set>
static void put(Kernels& table) {
    table.input_form = [](const PackedMatrix& weight) -> unsigned { return input_form(weight, set); };
    table.prepare = [](const PrepareArgs& args, Share& share) { run_prepare(args, share, set); };
    table.linear = [](const LinearArgs& args, Share& share) { run_linear(args, share, set); };
    table.prepare_groups = [](const PrepareGroupsArgs& args, Share& share) { run_prepare_groups(args, share, set); };
    table.linear_groups = [](const LinearGroupsArgs& args, Share& share) { run_linear_groups(args, share, set); };
}

}  // namespace tokenworks::cpu
