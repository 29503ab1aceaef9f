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
    *facts = facts_of(scale, sum_of(_mm256_add_epi32(q[0], q[1])), sum_of(_mm256_add_epi32(q[2], q[3])));
}

void finish(const FinishArgs& args) {
    __m256 scales[2] = {_mm256_set1_ps(args.scale), _mm256_set1_ps(args.scale)};
    if (args.row_scales)
        UNROLL for (int i = 0; i < 2; i++) scales[i] = _mm256_mul_ps(scales[i], _mm256_loadu_ps(args.row_scales + i * 8));
    for (int r = 0; r < args.height; r++) {
        const float* sums = args.sums + r * panel_width;
        const float* residual = args.residual ? args.residual + r * args.residual_stride : nullptr;
        float* out = args.output.row(r);
        if (args.columns == panel_width) {
            UNROLL for (int c = 0; c < panel_width; c += 8) {
                __m256 value = _mm256_mul_ps(_mm256_load_ps(sums + c), scales[c / 8]);
                if (args.bias) value = _mm256_add_ps(value, _mm256_loadu_ps(args.bias + c));
                if (residual) value = _mm256_add_ps(value, _mm256_loadu_ps(residual + c));
                _mm256_storeu_ps(out + c, value);
            }
            continue;
        }
        for (int c = 0; c < args.columns; c++) {
            float value = sums[c] * (args.row_scales ? args.scale * args.row_scales[c] : args.scale);
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

// Eight scales (of features 8 * side ...), as floats.
template <Layout layout>
INLINE __m256 load_scales(const uint8_t* scales, int part, int side) {
    constexpr Scales kind = row_of(layout).scales;
    const int at = part * 16 + side * 8;
    if constexpr (kind == Scales::f16) return load_halves(reinterpret_cast<const uint16_t*>(scales) + at);
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + at));
    if constexpr (kind == Scales::e4m3) return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 7));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23));
}

// Products with the codes of inputs 4i ... of a block, times 1 or, of i8, made of signs and magnitudes.
template <Layout layout>
INLINE __m256i codes_of(const uint8_t* group, int i, int side) {
    constexpr Codes kind = row_of(layout).codes;
    if constexpr (kind == Codes::i8) return load(group + i * 64 + side * 32);
    __m256i both = load(group + i % 4 * 64 + side * 32);
    if (i >= 4) both = _mm256_srli_epi16(both, 4);
    both = _mm256_and_si256(both, _mm256_set1_epi8(15));
    if constexpr (kind == Codes::u4) return both;
    const __m256i numbers = _mm256_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,  //
                                             12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return _mm256_shuffle_epi8(numbers, both);
}

template <int height, Layout layout>
INLINE void blocks(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts,
                   float* out) {
    constexpr LayoutRow row = row_of(layout);
    constexpr int parts = 32 / row.block, at_once = height < 4 ? height : 4;
    for (int64_t b = shape.in_features / 32; b > 0; b--) {
        const uint8_t* scales = panel + code_bytes(layout);
        for (int first = 0; first < height; first += at_once) {
            UNROLL for (int side = 0; side < 2; side++) {
                __m256 scaled[at_once];
                UNROLL for (int p = 0; p < parts; p++) {
                    __m256i sums[at_once];
                    UNROLL for (int r = 0; r < at_once; r++) sums[r] = _mm256_setzero_si256();
                    UNROLL for (int i = p * 8 / parts; i < (p + 1) * 8 / parts; i++) {
                        const __m256i weights = codes_of<layout>(panel, i, side);
                        UNROLL for (int r = 0; r < at_once; r++) {
                            const __m256i x = four(codes + (first + r) * 32, i);
                            if constexpr (row.codes == Codes::i8)
                                sums[r] = _mm256_add_epi32(sums[r], widen(_mm256_maddubs_epi16(
                                                                        _mm256_abs_epi8(weights),
                                                                        _mm256_sign_epi8(x, weights))));
                            else if constexpr (row.codes == Codes::e2m1)
                                sums[r] = _mm256_add_epi32(sums[r], widen(_mm256_maddubs_epi16(weights, x)));
                            else
                                sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(weights, x));
                        }
                    }
                    UNROLL for (int r = 0; r < at_once; r++) {
                        const BlockFacts& fact = facts[first + r];
                        __m256i sum = sums[r];
                        if constexpr (row.codes == Codes::u4) sum = widen(sum);
                        if constexpr (layout == Layout::q4) sum = _mm256_add_epi32(sum, _mm256_set1_epi32(fact.minus_8));
                        if constexpr (layout == Layout::mxfp4)
                            sum = _mm256_add_epi32(sum, _mm256_set1_epi32(fact.minus_12));
                        if constexpr (layout == Layout::nvfp4)
                            sum = _mm256_add_epi32(sum, _mm256_set1_epi32(fact.minus_12_halves[p]));
                        const __m256 value = _mm256_cvtepi32_ps(sum);
                        if constexpr (row.scales == Scales::none)
                            scaled[r] = value;
                        else if (p == 0)
                            scaled[r] = _mm256_mul_ps(value, load_scales<layout>(scales, p, side));
                        else
                            scaled[r] = _mm256_fmadd_ps(value, load_scales<layout>(scales, p, side), scaled[r]);
                    }
                }
                UNROLL for (int r = 0; r < at_once; r++) {
                    const BlockFacts& fact = facts[first + r];
                    float* at = out + (first + r) * panel_width + side * 8;
                    __m256 total = _mm256_fmadd_ps(scaled[r], _mm256_set1_ps(fact.scale), _mm256_load_ps(at));
                    if constexpr (row.minimums)
                        total = _mm256_fmadd_ps(load_scales<layout>(scales, 1, side), _mm256_set1_ps(fact.scaled_sum),
                                                total);
                    _mm256_store_ps(at, total);
                }
            }
        }
        panel += group_bytes(layout);
        codes += height * 32;
        facts += height;
    }
}

// Eight weights of one input.
template <Layout layout>
INLINE __m256 load_floats(const uint8_t* panel, int64_t k, int side) {
    constexpr Codes kind = row_of(layout).codes;
    const int64_t at = k * 16 + side * 8;
    if constexpr (kind == Codes::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(panel) + at);
    if constexpr (kind == Codes::f8) {
        const __m128i signs_first =
            _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(panel + at))), 8);
        const __m128i sign = _mm_set1_epi16(static_cast<int16_t>(0x8000));
        const __m128i rest = _mm_andnot_si128(sign, signs_first);
        return _mm256_cvtph_ps(_mm_or_si128(_mm_and_si128(signs_first, sign), _mm_srli_epi16(rest, 1)));
    }
    const uint16_t* values = reinterpret_cast<const uint16_t*>(panel) + at;
    if constexpr (kind == Codes::f16) return load_halves(values);
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

template <int height, Layout layout>
INLINE void floats(const PackedMatrix& shape, const uint8_t* panel, const float* x, float* out) {
    constexpr int at_once = height < 4 ? height : 4;
    for (int first = 0; first < height; first += at_once) {
        __m256 totals[at_once][2];  // a panel's 16 sums are two registers
        UNROLL for (int r = 0; r < at_once; r++) totals[r][0] = totals[r][1] = _mm256_setzero_ps();
        const float* inputs = x + first;
        for (int64_t k = 0; k < shape.in_features; k++, inputs += height)
            UNROLL for (int side = 0; side < 2; side++) {
                const __m256 row = load_floats<layout>(panel, k, side);
                UNROLL for (int r = 0; r < at_once; r++)
                    totals[r][side] = _mm256_fmadd_ps(row, _mm256_set1_ps(inputs[r]), totals[r][side]);
            }
        UNROLL for (int r = 0; r < at_once; r++) {
            _mm256_store_ps(out + (first + r) * panel_width, totals[r][0]);
            _mm256_store_ps(out + (first + r) * panel_width + 8, totals[r][1]);
        }
    }
}

template <int height, Layout layout>
struct Tile {
    static void run(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts,
                    const float* x, float* out) {
        if constexpr (row_of(layout).block) {
            for (int i = 0; i < height * panel_width; i += 8) _mm256_store_ps(out + i, _mm256_setzero_ps());
            blocks<height, layout>(shape, panel, codes, facts, out);
        } else {
            floats<height, layout>(shape, panel, x, out);
        }
    }
};

constexpr LinearKernels table = [] {
    LinearKernels kernels{quantise_block, finish, {}, {}};
    fill_tiles<Tile>(kernels, std::make_integer_sequence<int, layout_count>{});
    return kernels;
}();

}  // namespace

void linear_avx2(Kernels& kernels) {
    kernels.prepare = [](const PrepareArgs& args, Share& share) { run_prepare(args, share, table); };
    kernels.linear = [](const LinearArgs& args, Share& share) { run_linear(args, share, table); };
}

}  // namespace tokenworks::cpu
