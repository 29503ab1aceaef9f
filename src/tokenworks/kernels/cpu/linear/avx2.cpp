// AVX2: vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits. With 4-bit codes the eight groups of a
// block fit in 16 bits (8 * 2 * 15 * 127 = 30480); with 8-bit codes each pair is widened at once, the code's sign moved
// to the input so that the first factor is unsigned (2 * 128 * 127 = 32512).
#include <immintrin.h>

#include "linear.h"

namespace tokenworks::cpu {
namespace {

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE int32_t sum_of(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

void quantise_block(const float* x, int8_t* codes, BlockFacts* facts) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 v[4];
    UNROLL for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + i * 8);
    __m256 most = _mm256_and_ps(v[0], magnitude);
    UNROLL for (int i = 1; i < 4; i++) most = _mm256_max_ps(most, _mm256_and_ps(v[i], magnitude));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    m = _mm_max_ss(m, _mm_movehdup_ps(m));
    const float largest = _mm_cvtss_f32(m), scale = largest / 127.0f;
    const __m256 inverse = _mm256_set1_ps(largest > 0.0f ? 127.0f / largest : 0.0f);
    __m256i q[4];
    UNROLL for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    // Packing works within 128-bit lanes; the permutation puts the groups of four back in order.
    const __m256i words = _mm256_packs_epi32(q[0], q[1]), more = _mm256_packs_epi32(q[2], q[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words, more), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), bytes);
    const int32_t low = sum_of(_mm256_add_epi32(q[0], q[1])), high = sum_of(_mm256_add_epi32(q[2], q[3]));
    const int32_t sum = low + high;
    *facts = {scale, scale * static_cast<float>(sum), -8 * sum, -128 * sum, {-128 * low, -128 * high}};
}

void finish(const FinishArgs& args) {
    for (int r = 0; r < args.height; r++) {
        const float* sums = args.sums + r * panel_width;
        const float* residual = args.residual ? args.residual + r * args.residual_stride : nullptr;
        float* out = args.output.row(r);
        if (args.columns == panel_width) {
            UNROLL for (int c = 0; c < panel_width; c += 8) {
                __m256 value = _mm256_load_ps(sums + c);
                if (args.bias) value = _mm256_add_ps(value, _mm256_loadu_ps(args.bias + c));
                if (residual) value = _mm256_add_ps(value, _mm256_loadu_ps(residual + c));
                _mm256_storeu_ps(out + c, value);
            }
            continue;
        }
        for (int c = 0; c < args.columns; c++) {
            float value = sums[c];
            if (args.bias) value += args.bias[c];
            if (residual) value += residual[c];
            out[c] = value;
        }
    }
}

INLINE __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

INLINE __m256 load_halves(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

INLINE __m256i four(const int8_t* codes, int group) {
    int32_t value;
    __builtin_memcpy(&value, codes + group * 4, 4);
    return _mm256_set1_epi32(value);
}

INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// Adds a block's sums to out[8].
INLINE void add_scaled(float* out, __m256i sums, __m256 scales, float scale) {
    const __m256 factor = _mm256_mul_ps(scales, _mm256_set1_ps(scale));
    _mm256_store_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), factor, _mm256_load_ps(out)));
}

INLINE void add_minimum(float* out, __m256 minimums, float scaled_sum) {
    _mm256_store_ps(out, _mm256_fmadd_ps(minimums, _mm256_set1_ps(scaled_sum), _mm256_load_ps(out)));
}

template <int height>
INLINE void clear(float* out) {
    for (int i = 0; i < height * panel_width; i += 8) _mm256_store_ps(out + i, _mm256_setzero_ps());
}

template <int height, bool minimums>
void u4(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts, const float*,
        float* out) {
    clear<height>(out);
    constexpr int at_once = height < 4 ? height : 4;
    const __m256i low_half = _mm256_set1_epi8(15);
    for (int64_t b = shape.in_features / 32; b > 0; b--) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel + 256);
        for (int first = 0; first < height; first += at_once) {
            __m256i sums[at_once][2];
            UNROLL for (int r = 0; r < at_once; r++) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
            UNROLL for (int i = 0; i < 4; i++) {
                UNROLL for (int side = 0; side < 2; side++) {
                    const __m256i both = load(panel + i * 64 + side * 32);
                    const __m256i low = _mm256_and_si256(both, low_half);
                    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
                    UNROLL for (int r = 0; r < at_once; r++) {
                        const int8_t* x = codes + (first + r) * 32;
                        const __m256i a = _mm256_maddubs_epi16(low, four(x, i));
                        const __m256i c = _mm256_maddubs_epi16(high, four(x, i + 4));
                        sums[r][side] = _mm256_add_epi16(sums[r][side], _mm256_add_epi16(a, c));
                    }
                }
            }
            UNROLL for (int side = 0; side < 2; side++) {
                const __m256 scale = load_halves(scales + side * 8);
                UNROLL for (int r = 0; r < at_once; r++) {
                    const BlockFacts& fact = facts[first + r];
                    float* at = out + (first + r) * panel_width + side * 8;
                    __m256i wide = widen(sums[r][side]);
                    if (!minimums) wide = _mm256_add_epi32(wide, _mm256_set1_epi32(fact.minus_8_sum));
                    add_scaled(at, wide, scale, fact.scale);
                    if (minimums) add_minimum(at, load_halves(scales + 16 + side * 8), fact.scaled_sum);
                }
            }
        }
        panel += shape.group_bytes;
        codes += height * 32;
        facts += height;
    }
}

template <int height, int block, bool minimums>
void i8(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts, const float*,
        float* out) {
    clear<height>(out);
    constexpr int at_once = height < 4 ? height : 4;
    for (int64_t b = shape.in_features / 32; b > 0; b--) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel + 512);
        for (int first = 0; first < height; first += at_once) {
            UNROLL for (int part = 0; part < 32 / block; part++) {
                __m256i sums[at_once][2];
                UNROLL for (int r = 0; r < at_once; r++) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
                UNROLL for (int i = part * block / 4; i < (part + 1) * block / 4; i++) {
                    UNROLL for (int side = 0; side < 2; side++) {
                        const __m256i weights = load(panel + i * 64 + side * 32);
                        const __m256i magnitudes = _mm256_abs_epi8(weights);
                        UNROLL for (int r = 0; r < at_once; r++) {
                            const __m256i x = _mm256_sign_epi8(four(codes + (first + r) * 32, i), weights);
                            sums[r][side] =
                                _mm256_add_epi32(sums[r][side], widen(_mm256_maddubs_epi16(magnitudes, x)));
                        }
                    }
                }
                UNROLL for (int side = 0; side < 2; side++) {
                    const __m256 scale = load_halves(scales + part * 16 + side * 8);
                    UNROLL for (int r = 0; r < at_once; r++) {
                        const BlockFacts& fact = facts[first + r];
                        float* at = out + (first + r) * panel_width + side * 8;
                        add_scaled(at, sums[r][side], scale, fact.scale);
                        if (minimums) add_minimum(at, load_halves(scales + 16 + side * 8), fact.scaled_sum);
                    }
                }
            }
        }
        panel += shape.group_bytes;
        codes += height * 32;
        facts += height;
    }
}

struct Half {
    static constexpr int row_bytes = 32;
    INLINE __m256 load(const uint8_t* p, int side) {
        return load_halves(reinterpret_cast<const uint16_t*>(p) + side * 8);
    }
};
struct Brain {
    static constexpr int row_bytes = 32;
    INLINE __m256 load(const uint8_t* p, int side) {
        const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + side);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
    }
};
struct Single {
    static constexpr int row_bytes = 64;
    INLINE __m256 load(const uint8_t* p, int side) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p) + side * 8); }
};

template <int height, typename Element>
void floats(const PackedMatrix& shape, const uint8_t* panel, const int8_t*, const BlockFacts*, const float* x,
            float* out) {
    constexpr int at_once = height < 4 ? height : 4;
    for (int first = 0; first < height; first += at_once) {
        __m256 totals[at_once][2];  // a panel's 16 sums are two registers
        UNROLL for (int r = 0; r < at_once; r++) totals[r][0] = totals[r][1] = _mm256_setzero_ps();
        const uint8_t* weights = panel;
        const float* inputs = x + first;
        for (int64_t k = shape.in_features; k > 0; k--) {
            UNROLL for (int side = 0; side < 2; side++) {
                const __m256 row = Element::load(weights, side);
                UNROLL for (int r = 0; r < at_once; r++)
                    totals[r][side] = _mm256_fmadd_ps(row, _mm256_set1_ps(inputs[r]), totals[r][side]);
            }
            weights += Element::row_bytes;
            inputs += height;
        }
        UNROLL for (int r = 0; r < at_once; r++) {
            _mm256_store_ps(out + (first + r) * panel_width, totals[r][0]);
            _mm256_store_ps(out + (first + r) * panel_width + 8, totals[r][1]);
        }
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
    HEIGHTS(floats, Half),
    HEIGHTS(floats, Brain),
    HEIGHTS(floats, Single),
};

}  // namespace

void linear_avx2(Kernels& kernels) {
    kernels.prepare = [](const PrepareArgs& args, Share& share) { run_prepare(args, share, table); };
    kernels.linear = [](const LinearArgs& args, Share& share) { run_linear(args, share, table); };
}

}  // namespace tokenworks::cpu
