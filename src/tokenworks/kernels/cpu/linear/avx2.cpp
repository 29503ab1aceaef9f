// AVX2. Codes of 4 bits: vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits. Sums over a block stay
// in 16 bits: with codes 0..15 they fit (8 * 2 * 15 * 127 = 30480), with e2m1's 0..24 they wrap around on the way, but the
// sum less the zero's part fits (8 * 2 * 12 * 127 = 24384). So here the zero's part (BlockFacts) is of two sums of 16 bits:
// of inputs 0, 1 and of inputs 2, 3 of each four.
//
// i8 codes: their magnitude |w| is multiplied with the input x or, where w < 0, with ~x = -x - 1, which takes an exclusive
// or with a mask; each pair (at most 2 * 128 * 128 downwards, 2 * 128 * 127 upwards) is widened at once. What is left to add
// is the sum of |w| where w < 0, once for all rows. For one or two rows vpsignb is faster, which needs no mask and no sum, but
// shares the multiplying pipes.
#include <immintrin.h>

#include "linear.h"

namespace tokenworks::cpu {
namespace {

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

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

    // Sums of inputs 4i, 4i + 1 and of 4i + 2, 4i + 3, of each half.
    __m256i sums = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0x4e));
    sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0xb1));
    const __m128i low = _mm256_castsi256_si128(sums), high = _mm256_extracti128_si256(sums, 1);
    const __m128i all = _mm_add_epi16(low, high);
    const __m128i totals = _mm_madd_epi16(_mm_unpacklo_epi32(low, high), _mm_set1_epi16(1));
    const __m128i by_12 = _mm_mullo_epi16(_mm_unpacklo_epi64(_mm_unpacklo_epi32(low, high), all), _mm_set1_epi16(-12));
    const int32_t of_low = _mm_extract_epi32(totals, 0), of_high = _mm_extract_epi32(totals, 1);
    *facts = {scale,
              scale * static_cast<float>(of_low + of_high),
              _mm_cvtsi128_si32(_mm_mullo_epi16(all, _mm_set1_epi16(-8))),
              _mm_extract_epi32(by_12, 2),
              -128 * (of_low + of_high),
              {_mm_extract_epi32(by_12, 0), _mm_extract_epi32(by_12, 1)},
              {-128 * of_low, -128 * of_high}};
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

// The value is in a register now, as far as the compiler knows a new one. Left alone it reorders the sums into a tree, for
// which there are not registers enough, and loads weights again for every row.
INLINE void in_register(__m256i& value) { __asm__("" : "+x"(value)); }

// What inputs 4 * group ... are multiplied with, of features 8 * side ...: unsigned bytes.
template <Layout layout>
INLINE __m256i load_codes(const uint8_t* block, int group, int side) {
    constexpr Codes kind = row_of(layout).codes;
    if constexpr (kind == Codes::i8) return _mm256_abs_epi8(load(block + group * 64 + side * 32));
    const __m256i both = load(block + group % 4 * 64 + side * 32);
    const __m256i codes = _mm256_and_si256(group < 4 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
    if constexpr (kind == Codes::u4) return codes;
    const __m256i numbers = _mm256_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,  //
                                             12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return _mm256_shuffle_epi8(numbers, codes);
}

constexpr int rows_at_once = 4;

// What tells the signs of i8 codes: for few rows the codes themselves, for more a mask, all ones where they are negative.
template <int rows>
INLINE __m256i load_signs(const uint8_t* block, int group, int side) {
    const __m256i codes = load(block + group * 64 + side * 32);
    return rows < rows_at_once ? codes : _mm256_cmpgt_epi8(_mm256_setzero_si256(), codes);
}

// Where the sums of i8 codes begin: at the magnitudes that masks leave to add, of eight features.
template <Layout layout, int rows>
INLINE __m256i load_begin(const uint8_t* block, int part, int side) {
    constexpr int groups = row_of(layout).block / 4;
    __m256i sums = _mm256_setzero_si256();
    if constexpr (rows < rows_at_once) return sums;
    UNROLL for (int g = part * groups; g < (part + 1) * groups; g++)
        sums = _mm256_sub_epi16(
            sums, _mm256_maddubs_epi16(load_codes<layout>(block, g, side), load_signs<rows>(block, g, side)));
    return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}

// Where the sums of a block (or of the half of one) begin, if they are of 16 bits.
template <Layout layout>
INLINE __m256i begin(const BlockFacts& facts, int part) {
    if constexpr (layout == Layout::q4) return _mm256_set1_epi32(facts.minus_8);
    if constexpr (layout == Layout::mxfp4) return _mm256_set1_epi32(facts.minus_12);
    if constexpr (layout == Layout::nvfp4) return _mm256_set1_epi32(facts.minus_12_halves[part]);
    return _mm256_setzero_si256();
}

// A block's products with `at_once` rows, whose codes and facts lie one behind the other, added to out [at_once, 16].
// codes(group, side) and scales(part, side) read the weights, and so do, of i8 codes, signs(group, side) and
// begins(part, side); scales of part `parts` are minimums.
template <int at_once, Layout layout>
INLINE void add_block(const int8_t* x, const BlockFacts* facts, float* out, const auto& codes, const auto& signs,
                      const auto& begins, const auto& scales) {
    constexpr LayoutRow row = row_of(layout);
    constexpr bool wide = row.codes == Codes::i8;
    constexpr int parts = 32 / row.block;
    __m256 scaled[at_once][2];
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL for (int p = 0; p < parts; p++) {
        __m256i sums[at_once][2];
        UNROLL for (int r = 0; r < at_once; r++)
            UNROLL for (int side = 0; side < 2; side++)
                if constexpr (wide)
                    sums[r][side] = begins(p, side);
                else
                    sums[r][side] = begin<layout>(facts[r], p);
        UNROLL for (int g = p * 8 / parts; g < (p + 1) * 8 / parts; g++) {
            __m256i weights[2] = {codes(g, 0), codes(g, 1)}, sign[2];
            UNROLL for (int side = 0; side < 2; side++) {
                in_register(weights[side]);
                if constexpr (wide) sign[side] = signs(g, side);
                if constexpr (wide && at_once == rows_at_once) in_register(sign[side]);
            }
            UNROLL for (int r = 0; r < at_once; r++) {
                const __m256i inputs = four(x + r * 32, g);
                UNROLL for (int side = 0; side < 2; side++) {
                    __m256i& sum = sums[r][side];
                    if constexpr (wide) {
                        const __m256i signed_inputs = at_once < rows_at_once ? _mm256_sign_epi8(inputs, sign[side])
                                                                             : _mm256_xor_si256(inputs, sign[side]);
                        const __m256i pairs = _mm256_maddubs_epi16(weights[side], signed_inputs);
                        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                    } else {
                        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights[side], inputs));
                    }
                    in_register(sum);
                }
            }
        }
        UNROLL for (int r = 0; r < at_once; r++)
            UNROLL for (int side = 0; side < 2; side++) {
                const __m256 sum = _mm256_cvtepi32_ps(wide ? sums[r][side] : _mm256_madd_epi16(sums[r][side], ones));
                if constexpr (row.scales == Scales::none)
                    scaled[r][side] = sum;
                else
                    scaled[r][side] = p ? _mm256_fmadd_ps(sum, scales(p, side), scaled[r][side])
                                        : _mm256_mul_ps(sum, scales(p, side));
            }
    }
    UNROLL for (int r = 0; r < at_once; r++) {
        const __m256 input_scale = _mm256_set1_ps(facts[r].scale), input_sum = _mm256_set1_ps(facts[r].scaled_sum);
        UNROLL for (int side = 0; side < 2; side++) {
            float* at = out + r * panel_width + side * 8;
            __m256 total = _mm256_fmadd_ps(scaled[r][side], input_scale, _mm256_load_ps(at));
            if constexpr (row.minimums) total = _mm256_fmadd_ps(scales(parts, side), input_sum, total);
            _mm256_store_ps(at, total);
        }
    }
}

// A block unpacked, for tiles of many rows.
template <Layout layout>
struct Unpacked {
    static constexpr LayoutRow row = row_of(layout);
    static constexpr bool wide = row.codes == Codes::i8;
    static constexpr int parts = 32 / row.block, scale_rows = parts + row.minimums;
    alignas(64) uint8_t codes[8][64], signs[wide ? 8 : 1][64];
    alignas(64) int32_t begins[wide ? parts : 1][16];
    alignas(64) float scales[scale_rows][16];

    INLINE_MEMBER explicit Unpacked(const uint8_t* block) {
        const auto put = [](void* at, int side, __m256i value) {
            _mm256_store_si256(static_cast<__m256i*>(at) + side, value);
        };
        UNROLL for (int side = 0; side < 2; side++) {
            UNROLL for (int g = 0; g < 8; g++) {
                put(codes[g], side, load_codes<layout>(block, g, side));
                if constexpr (wide) put(signs[g], side, load_signs<rows_at_once>(block, g, side));
            }
            if constexpr (wide)
                UNROLL for (int p = 0; p < parts; p++)
                    put(begins[p], side, load_begin<layout, rows_at_once>(block, p, side));
            if constexpr (row.scales != Scales::none)
                UNROLL for (int p = 0; p < scale_rows; p++)
                    _mm256_store_ps(scales[p] + side * 8, load_scales<layout>(block + code_bytes(layout), p, side));
        }
    }
};

// An unpacked block's products with `height` rows.
template <int height, Layout layout>
INLINE void add_unpacked(const Unpacked<layout>& block, const int8_t* x, const BlockFacts* facts, float* out) {
    const auto get = [](const void* at, int side) { return load(static_cast<const uint8_t*>(at) + side * 32); };
    for (int r = 0; r < height; r += rows_at_once)
        add_block<rows_at_once, layout>(
            x + r * 32, facts + r, out + r * panel_width, [&](int g, int side) { return get(block.codes[g], side); },
            [&](int g, int side) { return get(block.signs[g], side); },
            [&](int part, int side) { return get(block.begins[part], side); },
            [&](int part, int side) { return _mm256_load_ps(block.scales[part] + side * 8); });
}

template <int height, Layout layout>
INLINE void blocks(const PackedMatrix& shape, const uint8_t* panel, const int8_t* x, const BlockFacts* facts,
                   const Fetch& fetch, float* out) {
    const uint8_t* soon = fetch.data;
    for (int64_t b = shape.in_features / 32; b > 0; b--) {
        for (int64_t at = 0; at < fetch.block_bytes; at += 64, soon += 64) __builtin_prefetch(soon, 0, 2);
        if constexpr (height <= rows_at_once)
            add_block<height, layout>(
                x, facts, out, [&](int g, int side) { return load_codes<layout>(panel, g, side); },
                [&](int g, int side) { return load_signs<height>(panel, g, side); },
                [&](int part, int side) { return load_begin<layout, height>(panel, part, side); },
                [&](int part, int side) { return load_scales<layout>(panel + code_bytes(layout), part, side); });
        else
            add_unpacked<height>(Unpacked<layout>(panel), x, facts, out);
        panel += group_bytes(layout);
        x += height * 32;
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
        // The sign goes to bit 15, and by widening to bit 14 too.
        const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(panel + at)));
        return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<int16_t>(0xbfff))));
    }
    if constexpr (kind == Codes::f16) return load_halves(reinterpret_cast<const uint16_t*>(panel) + at);
    // Of a pair the second one is in the upper half already.
    const __m256i pair = _mm256_sll_epi32(load(panel + k / 2 * 64 + side * 32), _mm_cvtsi32_si128(k % 2 ? 0 : 16));
    return _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))));
}

// Products of `inputs` inputs with `at_once` of a tile's rows, added to out [at_once, 16]. weights(k, side) reads them.
template <int at_once, int height>
INLINE void add_floats(int64_t inputs, const float* x, float* out, const auto& weights) {
    __m256 totals[at_once][2];  // a panel's 16 sums are two registers
    UNROLL for (int r = 0; r < at_once; r++)
        UNROLL for (int side = 0; side < 2; side++) totals[r][side] = _mm256_load_ps(out + r * panel_width + side * 8);
    for (int64_t k = 0; k < inputs; k++, x += height)
        UNROLL for (int side = 0; side < 2; side++) {
            const __m256 row = weights(k, side);
            UNROLL for (int r = 0; r < at_once; r++)
                totals[r][side] = _mm256_fmadd_ps(row, _mm256_set1_ps(x[r]), totals[r][side]);
        }
    UNROLL for (int r = 0; r < at_once; r++)
        UNROLL for (int side = 0; side < 2; side++) _mm256_store_ps(out + r * panel_width + side * 8, totals[r][side]);
}

template <int height, Layout layout>
INLINE void floats(const PackedMatrix& shape, const uint8_t* panel, const float* x, float* out) {
    constexpr int at_once = height < 4 ? height : 4;
    const auto weights = [&](int64_t k, int side) { return load_floats<layout>(panel, k, side); };
    if constexpr (height <= 4 || row_of(layout).codes != Codes::f8) {
        for (int r = 0; r < height; r += at_once)
            add_floats<at_once, height>(shape.in_features, x + r, out + r * panel_width, weights);
        return;
    }
    // Converted once for all rows, a stretch at a time.
    constexpr int stretch = 64;
    alignas(32) float converted[stretch * panel_width];
    for (int64_t first = 0; first < shape.in_features; first += stretch) {
        const int64_t inputs = shape.in_features - first < stretch ? shape.in_features - first : stretch;
        for (int64_t k = 0; k < inputs; k++)
            UNROLL for (int side = 0; side < 2; side++)
                _mm256_store_ps(converted + k * panel_width + side * 8, weights(first + k, side));
        for (int r = 0; r < height; r += at_once)
            add_floats<at_once, height>(inputs, x + first * height + r, out + r * panel_width, [&](int64_t k, int side) {
                return _mm256_load_ps(converted + k * panel_width + side * 8);
            });
    }
}

template <int height, Layout layout>
struct Tile {
    static void run(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, const Fetch& fetch,
                    float* out) {
        for (int i = 0; i < height * panel_width; i += 8) _mm256_store_ps(out + i, _mm256_setzero_ps());
        if constexpr (row_of(layout).block)
            blocks<height, layout>(shape, panel, x.codes, x.facts, fetch, out);
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

void linear_avx2(Kernels& kernels) { put<table>(kernels); }

}  // namespace tokenworks::cpu
