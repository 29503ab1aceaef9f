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
    const int32_t sum = halves[0] + halves[1];
    *facts = {scale, scale * static_cast<float>(sum), -8 * sum, -128 * sum, {-128 * halves[0], -128 * halves[1]}};
}

void finish(const FinishArgs& args) {
    for (int r = 0; r < args.height; r++)
        for (int c = 0; c < args.columns; c++) {
            float value = args.sums[r * panel_width + c];
            if (args.bias) value += args.bias[c];
            if (args.residual) value += args.residual[r * args.residual_stride + c];
            args.output.row(r)[c] = value;
        }
}

// 16 products of 4 codes each are added to `sums`; Weights are the 64 codes of a row of the panel.
template <typename Code>
void add_row(const Code* weights, const int8_t* x, int32_t* sums) {
    for (int c = 0; c < panel_width; c++)
        for (int j = 0; j < 4; j++) sums[c] += static_cast<int32_t>(weights[c * 4 + j]) * x[j];
}

template <int height, bool minimums>
void u4(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts, const float*,
        float* out) {
    std::memset(out, 0, height * panel_width * sizeof(float));
    for (int64_t b = 0; b < shape.in_features / 32; b++, panel += shape.group_bytes) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel + 256);
        uint8_t low[256], high[256];
        for (int i = 0; i < 256; i++) {
            low[i] = panel[i] & 15;
            high[i] = panel[i] >> 4;
        }
        for (int r = 0; r < height; r++, codes += 32, facts++) {
            int32_t sums[panel_width];
            for (int32_t& sum : sums) sum = minimums ? 0 : facts->minus_8_sum;
            for (int i = 0; i < 4; i++) {
                add_row(low + i * 64, codes + i * 4, sums);
                add_row(high + i * 64, codes + 16 + i * 4, sums);
            }
            for (int c = 0; c < panel_width; c++) {
                float& total = out[r * panel_width + c];
                total += static_cast<float>(sums[c]) * (half_to_float(scales[c]) * facts->scale);
                if (minimums) total += half_to_float(scales[16 + c]) * facts->scaled_sum;
            }
        }
    }
}

template <int height, int block, bool minimums>
void i8(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts, const float*,
        float* out) {
    std::memset(out, 0, height * panel_width * sizeof(float));
    for (int64_t b = 0; b < shape.in_features / 32; b++, panel += shape.group_bytes) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel + 512);
        for (int r = 0; r < height; r++, codes += 32, facts++)
            for (int part = 0; part < 32 / block; part++) {
                int32_t sums[panel_width] = {};
                for (int i = part * block / 4; i < (part + 1) * block / 4; i++)
                    add_row(reinterpret_cast<const int8_t*>(panel) + i * 64, codes + i * 4, sums);
                for (int c = 0; c < panel_width; c++) {
                    float& total = out[r * panel_width + c];
                    total += static_cast<float>(sums[c]) * (half_to_float(scales[part * 16 + c]) * facts->scale);
                    if (minimums) total += half_to_float(scales[16 + c]) * facts->scaled_sum;
                }
            }
    }
}

float from_f16(uint16_t value) { return half_to_float(value); }
float from_bf16(uint16_t value) { return bfloat_to_float(value); }
float from_f32(float value) { return value; }

template <int height, typename Element, float (*convert)(Element)>
void floats(const PackedMatrix& shape, const uint8_t* panel, const int8_t*, const BlockFacts*, const float* x,
            float* out) {
    std::memset(out, 0, height * panel_width * sizeof(float));
    const Element* weights = reinterpret_cast<const Element*>(panel);
    for (int64_t k = 0; k < shape.in_features; k++, weights += panel_width, x += height) {
        float row[panel_width];
        for (int c = 0; c < panel_width; c++) row[c] = convert(weights[c]);
        for (int r = 0; r < height; r++)
            for (int c = 0; c < panel_width; c++) out[r * panel_width + c] += row[c] * x[r];
    }
}

#define HEIGHTS(kernel, ...) \
    {kernel<1, __VA_ARGS__>, kernel<2, __VA_ARGS__>, kernel<4, __VA_ARGS__>, kernel<8, __VA_ARGS__>, \
     kernel<16, __VA_ARGS__>}

constexpr LinearKernels table = {
    quantise_block,
    finish,
    {HEIGHTS(u4, false), HEIGHTS(u4, true)},
    {HEIGHTS(i8, 32, false), HEIGHTS(i8, 32, true)},
    HEIGHTS(i8, 16, false),
    HEIGHTS(floats, uint16_t, from_f16),
    HEIGHTS(floats, uint16_t, from_bf16),
    HEIGHTS(floats, float, from_f32),
};

}  // namespace

void linear_scalar(Kernels& kernels) {
    kernels.prepare = [](const PrepareArgs& args, Share& share) { run_prepare(args, share, table); };
    kernels.linear = [](const LinearArgs& args, Share& share) { run_linear(args, share, table); };
}

}  // namespace tokenworks::cpu
