// AVX-512 with VNNI: vpdpbusd adds four products of an unsigned by a signed byte to each of 16 sums, so a row of a panel
// is one instruction. i8 codes are shifted by 128 to be unsigned; the sums start lower by what that adds.
#include <immintrin.h>

#include "linear.h"

namespace tokenworks::cpu {
namespace {

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

void quantise_block(const float* x, int8_t* codes, BlockFacts* facts) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const float scale = largest / 127.0f;
    const __m512 inverse = _mm512_set1_ps(largest > 0.0f ? 127.0f / largest : 0.0f);
    const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
    const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), _mm512_cvtepi32_epi8(second));
    const int32_t low = _mm512_reduce_add_epi32(first), high = _mm512_reduce_add_epi32(second);
    const int32_t sum = low + high;
    *facts = {scale, scale * static_cast<float>(sum), -8 * sum, -128 * sum, {-128 * low, -128 * high}};
}

void finish(const FinishArgs& args) {
    const __mmask16 columns = static_cast<__mmask16>((1u << args.columns) - 1);
    const __m512 bias = args.bias ? _mm512_maskz_loadu_ps(columns, args.bias) : _mm512_setzero_ps();
    for (int r = 0; r < args.height; r++) {
        __m512 value = _mm512_load_ps(args.sums + r * panel_width);
        if (args.bias) value = _mm512_add_ps(value, bias);
        if (args.residual)
            value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(columns, args.residual + r * args.residual_stride));
        _mm512_mask_storeu_ps(args.output.row(r), columns, value);
    }
}

INLINE __m512i load(const uint8_t* p) { return _mm512_loadu_si512(p); }

INLINE __m512 load_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The same four input codes for all 16 features.
INLINE __m512i four(const int8_t* codes, int group) {
    int32_t value;
    __builtin_memcpy(&value, codes + group * 4, 4);
    return _mm512_set1_epi32(value);
}

INLINE __m512 scaled(__m512 total, __m512i sums, __m512 scales, float scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(scales, _mm512_set1_ps(scale)), total);
}

template <int height>
INLINE void store(float* out, const __m512* totals) {
    UNROLL for (int r = 0; r < height; r++) _mm512_store_ps(out + r * panel_width, totals[r]);
}

template <int height, bool minimums>
void u4(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts, const float*,
        float* out) {
    __m512 totals[height];
    UNROLL for (int r = 0; r < height; r++) totals[r] = _mm512_setzero_ps();
    const __m512i low_half = _mm512_set1_epi8(15);
    for (int64_t b = shape.in_features / 32; b > 0; b--) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel + 256);
        __m512i rows[8];
        UNROLL for (int i = 0; i < 4; i++) {
            const __m512i both = load(panel + i * 64);
            rows[i] = _mm512_and_si512(both, low_half);
            rows[i + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
        }
        const __m512 scale = load_halves(scales);
        const __m512 minimum = minimums ? load_halves(scales + 16) : _mm512_setzero_ps();
        UNROLL for (int r = 0; r < height; r++) {
            __m512i sums = minimums ? _mm512_setzero_si512() : _mm512_set1_epi32(facts[r].minus_8_sum);
            UNROLL for (int i = 0; i < 8; i++) sums = _mm512_dpbusd_epi32(sums, rows[i], four(codes + r * 32, i));
            totals[r] = scaled(totals[r], sums, scale, facts[r].scale);
            if (minimums) totals[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(facts[r].scaled_sum), totals[r]);
        }
        panel += shape.group_bytes;
        codes += height * 32;
        facts += height;
    }
    store<height>(out, totals);
}

template <int height, bool minimums>
void i8(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts, const float*,
        float* out) {
    __m512 totals[height];
    UNROLL for (int r = 0; r < height; r++) totals[r] = _mm512_setzero_ps();
    const __m512i shift = _mm512_set1_epi8(-128);
    for (int64_t b = shape.in_features / 32; b > 0; b--) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel + 512);
        __m512i rows[8];
        UNROLL for (int i = 0; i < 8; i++) rows[i] = _mm512_xor_si512(load(panel + i * 64), shift);
        const __m512 scale = load_halves(scales);
        const __m512 minimum = minimums ? load_halves(scales + 16) : _mm512_setzero_ps();
        UNROLL for (int r = 0; r < height; r++) {
            __m512i sums = _mm512_set1_epi32(facts[r].minus_128_sum);
            UNROLL for (int i = 0; i < 8; i++) sums = _mm512_dpbusd_epi32(sums, rows[i], four(codes + r * 32, i));
            totals[r] = scaled(totals[r], sums, scale, facts[r].scale);
            if (minimums) totals[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(facts[r].scaled_sum), totals[r]);
        }
        panel += shape.group_bytes;
        codes += height * 32;
        facts += height;
    }
    store<height>(out, totals);
}

template <int height>
void i8_16(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts, const float*,
           float* out) {
    __m512 totals[height];
    UNROLL for (int r = 0; r < height; r++) totals[r] = _mm512_setzero_ps();
    const __m512i shift = _mm512_set1_epi8(-128);
    for (int64_t b = shape.in_features / 32; b > 0; b--) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel + 512);
        UNROLL for (int half = 0; half < 2; half++) {
            __m512i rows[4];
            UNROLL for (int i = 0; i < 4; i++) rows[i] = _mm512_xor_si512(load(panel + (half * 4 + i) * 64), shift);
            const __m512 scale = load_halves(scales + half * 16);
            UNROLL for (int r = 0; r < height; r++) {
                __m512i sums = _mm512_set1_epi32(facts[r].minus_128_sum_halves[half]);
                UNROLL for (int i = 0; i < 4; i++)
                    sums = _mm512_dpbusd_epi32(sums, rows[i], four(codes + r * 32, half * 4 + i));
                totals[r] = scaled(totals[r], sums, scale, facts[r].scale);
            }
        }
        panel += shape.group_bytes;
        codes += height * 32;
        facts += height;
    }
    store<height>(out, totals);
}

struct Half {
    static constexpr int row_bytes = 32;
    INLINE __m512 load(const uint8_t* p) { return load_halves(reinterpret_cast<const uint16_t*>(p)); }
};
struct Brain {
    static constexpr int row_bytes = 32;
    INLINE __m512 load(const uint8_t* p) {
        const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
    }
};
struct Single {
    static constexpr int row_bytes = 64;
    INLINE __m512 load(const uint8_t* p) { return _mm512_loadu_ps(p); }
};

template <int height, typename Element>
void floats(const PackedMatrix& shape, const uint8_t* panel, const int8_t*, const BlockFacts*, const float* x,
            float* out) {
    __m512 totals[height];
    UNROLL for (int r = 0; r < height; r++) totals[r] = _mm512_setzero_ps();
    for (int64_t k = shape.in_features; k > 0; k--) {
        const __m512 row = Element::load(panel);
        UNROLL for (int r = 0; r < height; r++) totals[r] = _mm512_fmadd_ps(row, _mm512_set1_ps(x[r]), totals[r]);
        panel += Element::row_bytes;
        x += height;
    }
    store<height>(out, totals);
}

#define HEIGHTS(kernel, ...) \
    {kernel<1, __VA_ARGS__>, kernel<2, __VA_ARGS__>, kernel<4, __VA_ARGS__>, kernel<8, __VA_ARGS__>, \
     kernel<16, __VA_ARGS__>}

constexpr LinearKernels table = {
    quantise_block,
    finish,
    {HEIGHTS(u4, false), HEIGHTS(u4, true)},
    {HEIGHTS(i8, false), HEIGHTS(i8, true)},
    {i8_16<1>, i8_16<2>, i8_16<4>, i8_16<8>, i8_16<16>},
    HEIGHTS(floats, Half),
    HEIGHTS(floats, Brain),
    HEIGHTS(floats, Single),
};

}  // namespace

void linear_avx512(Kernels& kernels) {
    kernels.prepare = [](const PrepareArgs& args, Share& share) { run_prepare(args, share, table); };
    kernels.linear = [](const LinearArgs& args, Share& share) { run_linear(args, share, table); };
}

}  // namespace tokenworks::cpu
