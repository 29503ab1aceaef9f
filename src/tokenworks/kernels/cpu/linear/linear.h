// A linear product in two instructions: prepare brings the input into the form that the weights' kernels multiply, then
// linear multiplies. Several products may share one prepared input.
//
// Prepared rows lie in tiles of 16, 8, 4, 2 and 1 rows: all the full sixteens, then one of each smaller height that the
// number of rows needs. A kernel keeps a whole tile's sums in registers while a panel of weights streams past.
#pragma once

#include "../kernels.h"
#include "packed.h"

namespace tokenworks::cpu {

constexpr int tile_heights[] = {1, 2, 4, 8, 16};  // index: log2

// What a kernel needs to know about 32 quantised inputs besides their codes (sums are of codes).
struct BlockFacts {
    float scale;
    float scaled_sum;       // scale * sum: for minimums
    int32_t minus_8_sum;    // for u4 without minimums, whose codes are 8 too large
    int32_t minus_128_sum;  // for kernels that shift i8 codes by 128 to make them unsigned
    int32_t minus_128_sum_halves[2];
};

// A tile of height h that begins at row b has its data at offset b * (elements of a row) of each array:
// codes [in_features / 32, h, 32], facts [in_features / 32, h], floats [in_features, h].
struct Prepared {
    int8_t* codes;
    BlockFacts* facts;
    float* floats;
};

struct PrepareArgs {
    int rows;
    Columns x;
    int width;
    bool quantised, floats;  // which of the two forms are wanted
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
};

// --- What an instruction set gives ---

// Products of a panel with a tile: out[row of tile, 16] = sum over k.
using TileKernel = void (*)(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes,
                            const BlockFacts* facts, const float* floats, float* out);

// Writes a tile's sums out: output row r, [columns] = sums[r] + bias + residual row r; bias and residual may be null.
struct FinishArgs {
    const float* sums;  // [height, 16]
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
    // By log2 of the tile's height. u4 and i8: also by PackedMatrix::minimums; i8_16 has a scale for every 16 inputs.
    TileKernel u4[2][5], i8[2][5], i8_16[5], f16[5], bf16[5], f32[5];
};

// --- The parts that are the same for all of them ---
void run_prepare(const PrepareArgs& args, Share& share, const LinearKernels& kernels);
void run_linear(const LinearArgs& args, Share& share, const LinearKernels& kernels);

}  // namespace tokenworks::cpu
