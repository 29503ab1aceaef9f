// NEON with dot products (Armv8.2): sdot adds four products of signed bytes to each of 4 sums, so a row of a panel is four
// instructions, whose second factor is four codes of an input, taken from a register by their number.
#include <arm_neon.h>

#include "linear.h"

namespace tokenworks::cpu {
namespace {

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

constexpr int quarters = panel_width / 4;  // registers for a panel's 16 sums

void quantise_block(const float* x, int8_t* codes, BlockFacts* facts) {
    float32x4_t v[8], most = vdupq_n_f32(0.0f);
    UNROLL for (int i = 0; i < 8; i++) {
        v[i] = vld1q_f32(x + i * 4);
        most = vmaxq_f32(most, vabsq_f32(v[i]));
    }
    const float largest = vmaxvq_f32(most), scale = largest / 127.0f;
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    int32_t halves[2];
    UNROLL for (int half = 0; half < 2; half++) {
        int32x4_t q[4];  // rounded to nearest, ties to even
        UNROLL for (int i = 0; i < 4; i++) q[i] = vcvtnq_s32_f32(vmulq_n_f32(v[half * 4 + i], inverse));
        const int16x8_t low = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
        vst1q_s8(codes + half * 16, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        halves[half] = vaddvq_s32(vaddq_s32(vaddq_s32(q[0], q[1]), vaddq_s32(q[2], q[3])));
    }
    *facts = facts_of(scale, halves[0], halves[1]);
}

void finish(const FinishArgs& args) {
    for (int r = 0; r < args.height; r++) {
        const float* sums = args.sums + r * panel_width;
        const float* residual = args.residual ? args.residual + r * args.residual_stride : nullptr;
        float* out = args.output.row(r);
        int c = 0;
        for (; c + 4 <= args.columns; c += 4) {
            float32x4_t value = vmulq_n_f32(vld1q_f32(sums + c), args.scale);
            if (args.row_scales) value = vmulq_f32(value, vld1q_f32(args.row_scales + c));
            if (args.bias) value = vaddq_f32(value, vld1q_f32(args.bias + c));
            if (residual) value = vaddq_f32(value, vld1q_f32(residual + c));
            vst1q_f32(out + c, value);
        }
        for (; c < args.columns; c++) {
            float value = sums[c] * args.scale;
            if (args.row_scales) value *= args.row_scales[c];
            if (args.bias) value += args.bias[c];
            if (residual) value += residual[c];
            out[c] = value;
        }
    }
}

INLINE float32x4_t floats_of_halves(uint16x4_t bits) { return vcvt_f32_f16(vreinterpret_f16_u16(bits)); }

// A quarter of 16 scales.
template <Layout layout>
INLINE float32x4_t load_scales(const uint8_t* scales, int part, int quarter) {
    constexpr Scales kind = row_of(layout).scales;
    const int first = part * panel_width + quarter * 4;
    if constexpr (kind == Scales::f16)
        return floats_of_halves(vld1_u16(reinterpret_cast<const uint16_t*>(scales) + first));
    uint32_t four;
    __builtin_memcpy(&four, scales + first, sizeof four);
    const uint16x4_t wide = vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))));
    if constexpr (kind == Scales::e4m3) return floats_of_halves(vshl_n_u16(wide, 7));
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(wide), 23));
}

// Four inputs' codes of 4 features, as signed numbers: row i of a block.
template <Layout layout>
INLINE int8x16_t load_codes(const uint8_t* group, int i, int quarter) {
    constexpr Codes kind = row_of(layout).codes;
    if constexpr (kind == Codes::i8) return vld1q_s8(reinterpret_cast<const int8_t*>(group) + i * 64 + quarter * 16);
    const uint8x16_t both = vld1q_u8(group + i % 4 * 64 + quarter * 16);
    const uint8x16_t code = i < 4 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
    if constexpr (kind == Codes::e2m1) {
        alignas(16) static constexpr int8_t numbers[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        return vqtbl1q_s8(vld1q_s8(numbers), code);
    }
    const int8x16_t number = vreinterpretq_s8_u8(code);
    return row_of(layout).minimums ? number : vsubq_s8(number, vdupq_n_s8(8));
}

// Adds the products of rows i to last - 1 of a block with some tile rows.
template <Layout layout, int i, int last, int rows>
INLINE void multiply(const uint8_t* group, const int8x16_t (&x)[rows][2], int32x4_t (&sums)[rows][quarters]) {
    UNROLL for (int quarter = 0; quarter < quarters; quarter++) {
        const int8x16_t weights = load_codes<layout>(group, i, quarter);
        UNROLL for (int r = 0; r < rows; r++)
            sums[r][quarter] = vdotq_laneq_s32(sums[r][quarter], weights, x[r][i / 4], i % 4);
    }
    if constexpr (i + 1 < last) multiply<layout, i + 1, last>(group, x, sums);
}

// Adds the products of a block, or of the half `part` of one, times its scales.
template <Layout layout, int part, int rows>
INLINE void add_part(const uint8_t* group, const int8x16_t (&x)[rows][2], float32x4_t (&scaled)[rows][quarters]) {
    constexpr int parts = 32 / row_of(layout).block;
    int32x4_t sums[rows][quarters];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int quarter = 0; quarter < quarters; quarter++) sums[r][quarter] = vdupq_n_s32(0);
    multiply<layout, part * 8 / parts, (part + 1) * 8 / parts>(group, x, sums);
    UNROLL for (int quarter = 0; quarter < quarters; quarter++) {
        float32x4_t scales;
        if constexpr (row_of(layout).scales != Scales::none)
            scales = load_scales<layout>(group + code_bytes(layout), part, quarter);
        UNROLL for (int r = 0; r < rows; r++) {
            const float32x4_t sum = vcvtq_f32_s32(sums[r][quarter]);
            if constexpr (row_of(layout).scales == Scales::none)
                scaled[r][quarter] = sum;
            else
                scaled[r][quarter] = part ? vfmaq_f32(scaled[r][quarter], sum, scales) : vmulq_f32(sum, scales);
        }
    }
}

template <int height, Layout layout>
INLINE void blocks(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts,
                   float* out) {
    constexpr int rows = height < 4 ? height : 4;  // at once: 16 registers of sums
    for (int64_t b = shape.in_features / 32; b > 0; b--) {
        for (int first = 0; first < height; first += rows) {
            int8x16_t x[rows][2];
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int half = 0; half < 2; half++) x[r][half] = vld1q_s8(codes + (first + r) * 32 + half * 16);
            float32x4_t scaled[rows][quarters];
            add_part<layout, 0>(panel, x, scaled);
            if constexpr (row_of(layout).block == 16) add_part<layout, 1>(panel, x, scaled);
            UNROLL for (int quarter = 0; quarter < quarters; quarter++) {
                float32x4_t minimum;
                if constexpr (row_of(layout).minimums)
                    minimum = load_scales<layout>(panel + code_bytes(layout), 1, quarter);
                UNROLL for (int r = 0; r < rows; r++) {
                    float* at = out + (first + r) * panel_width + quarter * 4;
                    float32x4_t total = vfmaq_n_f32(vld1q_f32(at), scaled[r][quarter], facts[first + r].scale);
                    if constexpr (row_of(layout).minimums)
                        total = vfmaq_n_f32(total, minimum, facts[first + r].scaled_sum);
                    vst1q_f32(at, total);
                }
            }
        }
        panel += group_bytes(layout);
        codes += height * 32;
        facts += height;
    }
}

// A quarter of input k's 16 weights.
template <Layout layout>
INLINE float32x4_t load_floats(const uint8_t* panel, int64_t k, int quarter) {
    constexpr Codes kind = row_of(layout).codes;
    const int64_t first = k * panel_width + quarter * 4;
    if constexpr (kind == Codes::f32) return vld1q_f32(reinterpret_cast<const float*>(panel) + first);
    if constexpr (kind == Codes::f8) {
        uint32_t four;
        __builtin_memcpy(&four, panel + first, sizeof four);
        const uint16x4_t wide = vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))));
        const uint16x4_t sign = vshl_n_u16(vand_u16(wide, vdup_n_u16(0x80)), 8);
        return floats_of_halves(vorr_u16(sign, vshl_n_u16(vand_u16(wide, vdup_n_u16(0x7f)), 7)));
    }
    if constexpr (kind == Codes::f16)
        return floats_of_halves(vld1_u16(reinterpret_cast<const uint16_t*>(panel) + first));
    // Of a pair the second one is in the upper half already.
    const uint32x4_t pair = vld1q_u32(reinterpret_cast<const uint32_t*>(panel + k / 2 * 64 + quarter * 16));
    return vreinterpretq_f32_u32(vandq_u32(vshlq_u32(pair, vdupq_n_s32(k % 2 ? 0 : 16)), vdupq_n_u32(0xffff0000)));
}

template <int height, Layout layout>
INLINE void floats(const PackedMatrix& shape, const uint8_t* panel, const float* x, float* out) {
    constexpr int rows = height < 4 ? height : 4;
    for (int first = 0; first < height; first += rows) {
        float32x4_t totals[rows][quarters];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int quarter = 0; quarter < quarters; quarter++) totals[r][quarter] = vdupq_n_f32(0.0f);
        for (int64_t k = 0; k < shape.in_features; k++) {
            UNROLL for (int quarter = 0; quarter < quarters; quarter++) {
                const float32x4_t row = load_floats<layout>(panel, k, quarter);
                UNROLL for (int r = 0; r < rows; r++)
                    totals[r][quarter] = vfmaq_n_f32(totals[r][quarter], row, x[k * height + first + r]);
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int quarter = 0; quarter < quarters; quarter++)
                vst1q_f32(out + (first + r) * panel_width + quarter * 4, totals[r][quarter]);
    }
}

template <int height, Layout layout>
struct Tile {
    static void run(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, const Fetch&,
                    float* out) {
        if constexpr (row_of(layout).block) {
            __builtin_memset(out, 0, height * panel_width * sizeof(float));
            blocks<height, layout>(shape, panel, x.codes, x.facts, out);
        } else {
            floats<height, layout>(shape, panel, x.floats, out);
        }
    }
};

constexpr LinearKernels table = [] {
    LinearKernels kernels{quantise_block, finish, nullptr, {}, {}};
    fill_tiles<Tile>(kernels, std::make_integer_sequence<int, layout_count>{});
    return kernels;
}();

}  // namespace

void linear_neon(Kernels& kernels) { put<table>(kernels); }

}  // namespace tokenworks::cpu
