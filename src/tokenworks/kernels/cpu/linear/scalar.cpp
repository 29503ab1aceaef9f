#include <cmath>
#include <cstring>

#include "../half.h"
#include "linear.h"

namespace tokenworks::cpu {
namespace {

void quantise_block(const float* x, int8_t* codes, BlockFacts* facts) {
    float largest = 0.0f;
    for (int i = 0; i < 32; i++) largest = std::fmax(largest, std::fabs(x[i]));
    const float scale = largest / 127.0f;
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    int32_t halves[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        codes[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
        halves[i / 16] += codes[i];
    }
    *facts = facts_of(scale, halves[0], halves[1]);
}

void finish(const FinishArgs& args) {
    for (int r = 0; r < args.height; r++)
        for (int c = 0; c < args.columns; c++) {
            float value = args.sums[r * panel_width + c] * args.scale;
            if (args.row_scales) value *= args.row_scales[c];
            if (args.bias) value += args.bias[c];
            if (args.residual) value += args.residual[r * args.residual_stride + c];
            args.output.row(r)[c] = value;
        }
}

// The numbers of 32 inputs' codes: row i is four inputs of each feature.
template <Layout layout>
void read_codes(const uint8_t* group, int8_t (&rows)[8][64]) {
    constexpr int8_t e2m1[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    if constexpr (row_of(layout).codes == Codes::i8) {
        std::memcpy(rows, group, sizeof rows);
        return;
    }
    for (int i = 0; i < 256; i++) {
        const uint8_t codes[2] = {static_cast<uint8_t>(group[i] & 15), static_cast<uint8_t>(group[i] >> 4)};
        for (int half = 0; half < 2; half++) {
            const int number = row_of(layout).codes == Codes::e2m1 ? e2m1[codes[half]]
                               : row_of(layout).minimums           ? codes[half]
                                                                   : codes[half] - 8;
            rows[i / 64 + half * 4][i % 64] = static_cast<int8_t>(number);
        }
    }
}

template <Layout layout>
float read_scale(const uint8_t* scales, int i) {
    switch (row_of(layout).scales) {
        case Scales::none: break;
        case Scales::f16: return half_to_float(reinterpret_cast<const uint16_t*>(scales)[i]);
        case Scales::e4m3: return half_to_float(static_cast<uint16_t>(scales[i] << 7));
        case Scales::e8m0: return float_from_bits(static_cast<uint32_t>(scales[i]) << 23);
    }
    return 1.0f;
}

template <int height, Layout layout>
void blocks(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts, float* out) {
    constexpr LayoutRow row = row_of(layout);
    for (int64_t b = 0; b < shape.in_features / 32; b++, panel += group_bytes(layout)) {
        const uint8_t* scales = panel + code_bytes(layout);
        int8_t rows[8][64];
        read_codes<layout>(panel, rows);
        for (int r = 0; r < height; r++, codes += 32, facts++)
            for (int c = 0; c < panel_width; c++) {
                float scaled = 0.0f;
                for (int part = 0; part < 32 / row.block; part++) {
                    int32_t sum = 0;
                    for (int i = part * row.block; i < (part + 1) * row.block; i++)
                        sum += rows[i / 4][c * 4 + i % 4] * codes[i];
                    scaled += static_cast<float>(sum) * read_scale<layout>(scales, part * panel_width + c);
                }
                out[r * panel_width + c] += scaled * facts->scale;
                if (row.minimums)
                    out[r * panel_width + c] += read_scale<layout>(scales, panel_width + c) * facts->scaled_sum;
            }
    }
}

// Input k's weight of a feature.
template <Layout layout>
float read_float(const uint8_t* panel, int64_t k, int feature) {
    const int64_t i = k * panel_width + feature;
    switch (row_of(layout).codes) {
        case Codes::f8: return half_to_float(static_cast<uint16_t>((panel[i] & 0x80) << 8 | (panel[i] & 0x7f) << 7));
        case Codes::f16: return half_to_float(reinterpret_cast<const uint16_t*>(panel)[i]);
        case Codes::bf16: return bfloat_to_float(reinterpret_cast<const uint16_t*>(panel)[k / 2 * 32 + feature * 2 + k % 2]);
        default: return reinterpret_cast<const float*>(panel)[i];
    }
}

template <int height, Layout layout>
void floats(const PackedMatrix& shape, const uint8_t* panel, const float* x, float* out) {
    for (int64_t k = 0; k < shape.in_features; k++, x += height) {
        float row[panel_width];
        for (int c = 0; c < panel_width; c++) row[c] = read_float<layout>(panel, k, c);
        for (int r = 0; r < height; r++)
            for (int c = 0; c < panel_width; c++) out[r * panel_width + c] += row[c] * x[r];
    }
}

template <int height, Layout layout>
struct Tile {
    static void run(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, const Fetch&,
                    float* out) {
        std::memset(out, 0, height * panel_width * sizeof(float));
        if constexpr (row_of(layout).block)
            blocks<height, layout>(shape, panel, x.codes, x.facts, out);
        else
            floats<height, layout>(shape, panel, x.floats, out);
    }
};

constexpr LinearKernels table = [] {
    LinearKernels kernels{quantise_block, finish, nullptr, {}, {}};
    fill_tiles<Tile>(kernels, std::make_integer_sequence<int, layout_count>{});
    return kernels;
}();

}  // namespace

void linear_scalar(Kernels& kernels) { put<table>(kernels); }

}  // namespace tokenworks::cpu
