// AVX-512 with VNNI: vpdpbusd adds four products of an unsigned by a signed byte to each of 16 sums, so a row of a panel
// is one instruction.
#include "avx512.h"

namespace tokenworks::cpu {
namespace {

void quantise_block(const float* x, int8_t* codes, BlockFacts* facts) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const float scale = largest / 127.0f;
    const __m512 inverse = _mm512_set1_ps(largest > 0.0f ? 127.0f / largest : 0.0f);
    const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
    const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), _mm512_cvtepi32_epi8(second));
    *facts = facts_of(scale, _mm512_reduce_add_epi32(first), _mm512_reduce_add_epi32(second));
}

void finish(const FinishArgs& args) {
    const __mmask16 columns = static_cast<__mmask16>((1u << args.columns) - 1);
    const __m512 bias = args.bias ? _mm512_maskz_loadu_ps(columns, args.bias) : _mm512_setzero_ps();
    __m512 scale = _mm512_set1_ps(args.scale);
    if (args.row_scales) scale = _mm512_mul_ps(scale, _mm512_loadu_ps(args.row_scales));
    for (int r = 0; r < args.height; r++) {
        __m512 value = _mm512_mul_ps(_mm512_load_ps(args.sums + r * panel_width), scale);
        if (args.bias) value = _mm512_add_ps(value, bias);
        if (args.residual)
            value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(columns, args.residual + r * args.residual_stride));
        _mm512_mask_storeu_ps(args.output.row(r), columns, value);
    }
}

// The same four input codes for all 16 features.
INLINE __m512i four(const int8_t* codes, int group) {
    int32_t value;
    __builtin_memcpy(&value, codes + group * 4, 4);
    return _mm512_set1_epi32(value);
}

// Where the sum of a block (or of the half of one) begins.
template <Layout layout>
INLINE __m512i begin(const BlockFacts& facts, int part) {
    constexpr LayoutRow row = row_of(layout);
    if constexpr (row.codes == Codes::i8)
        return _mm512_set1_epi32(row.block == 16 ? facts.minus_128_halves[part] : facts.minus_128);
    if constexpr (row.codes == Codes::e2m1)
        return _mm512_set1_epi32(row.block == 16 ? facts.minus_12_halves[part] : facts.minus_12);
    return row.minimums ? _mm512_setzero_si512() : _mm512_set1_epi32(facts.minus_8);
}

template <int height, Layout layout>
INLINE void blocks(const PackedMatrix& shape, const uint8_t* panel, const int8_t* codes, const BlockFacts* facts,
                   const Fetch& fetch, __m512 (&totals)[height]) {
    constexpr int parts = 32 / row_of(layout).block;
    // Rows side by side, as a row's eight sums wait for each other; two parts of four rows would not fit the registers.
    constexpr int at_once = parts > 1 ? 1 : height < 4 ? height : 4;
    const uint8_t* soon = fetch.data;
    for (int64_t b = shape.in_features / 32; b > 0; b--) {
        for (int64_t at = 0; at < fetch.block_bytes; at += 64, soon += 64)
            __builtin_prefetch(soon, 0, 2);  // 2: into the second-level cache
        __m512i rows[8];
        load_codes<layout>(panel, rows);
        const BlockScales<layout> scales = load_block_scales<layout>(panel);
        UNROLL for (int first = 0; first < height; first += at_once) {
            __m512i sums[at_once][parts];
            UNROLL for (int r = 0; r < at_once; r++)
                UNROLL for (int p = 0; p < parts; p++) sums[r][p] = begin<layout>(facts[first + r], p);
            UNROLL for (int i = 0; i < 8; i++)
                UNROLL for (int r = 0; r < at_once; r++) {
                    __m512i& sum = sums[r][i * parts / 8];
                    sum = _mm512_dpbusd_epi32(sum, rows[i], four(codes + (first + r) * 32, i));
                }
            UNROLL for (int r = 0; r < at_once; r++)
                totals[first + r] = add_block<layout>(totals[first + r], sums[r], scales, facts[first + r]);
        }
        panel += group_bytes(layout);
        codes += height * 32;
        facts += height;
    }
}

// 16 weights of one input.
template <Layout layout>
INLINE __m512 load_floats(const uint8_t* panel, int64_t k) {
    constexpr Codes kind = row_of(layout).codes;
    if constexpr (kind == Codes::f32) return _mm512_loadu_ps(panel + k * 64);
    if constexpr (kind == Codes::f8) {
        // The sign goes to bit 15, and by widening to bit 14 too.
        const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel) + k));
        const __m256i mask = _mm256_set1_epi16(static_cast<int16_t>(0xbfff));
        return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(wide, 7), mask));
    }
    if constexpr (kind == Codes::f16) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel) + k));
    // Of a pair the second one is in the upper half already.
    const __m512i pair = _mm512_sll_epi32(load(panel + k / 2 * 64), _mm_cvtsi32_si128(k % 2 ? 0 : 16));
    return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
}

template <int height, Layout layout>
INLINE void floats(const PackedMatrix& shape, const uint8_t* panel, const float* x, __m512 (&totals)[height]) {
    for (int64_t k = 0; k < shape.in_features; k++, x += height) {
        const __m512 row = load_floats<layout>(panel, k);
        UNROLL for (int r = 0; r < height; r++) totals[r] = _mm512_fmadd_ps(row, _mm512_set1_ps(x[r]), totals[r]);
    }
}

template <int height, Layout layout>
struct Tile {
    static void run(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, const Fetch& fetch,
                    float* out) {
        __m512 totals[height];
        UNROLL for (int r = 0; r < height; r++) totals[r] = _mm512_setzero_ps();
        if constexpr (row_of(layout).block)
            blocks<height, layout>(shape, panel, x.codes, x.facts, fetch, totals);
        else
            floats<height, layout>(shape, panel, x.floats, totals);
        UNROLL for (int r = 0; r < height; r++) _mm512_store_ps(out + r * panel_width, completed<layout>(totals[r]));
    }
};

constexpr LinearKernels filled() {
    LinearKernels kernels{quantise_block, finish, nullptr, {}, {}};
    fill_tiles<Tile>(kernels, std::make_integer_sequence<int, layout_count>{});
    return kernels;
}

}  // namespace

constinit const LinearKernels avx512_linear = filled();

void linear_avx512(Kernels& kernels) { put<avx512_linear>(kernels); }

}  // namespace tokenworks::cpu
