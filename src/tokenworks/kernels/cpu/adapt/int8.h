// Products of an adapter's int8 panels with rows of int8: whole numbers for every 32 inputs, then a row's scale there.
#pragma once

#include "../vector.h"
#include "adapters.h"

namespace tokenworks::cpu {
namespace {

// A quantised row: 32 inputs' codes and facts, and how far it is to the next 32.
struct Codes {
    const int8_t* codes;
    const BlockFacts* facts;
    int64_t stride;  // in blocks
};

INLINE Codes codes_of(const Prepared& prepared, const TilePlace& place, int width) {
    const int64_t first = int64_t{place.begin} * ((width + 31) / 32) + place.in_tile;
    return {prepared.codes + first * 32, prepared.facts + first, place.height};
}

// What is between the two products of an adapter, as the products' inputs are.
struct QuantisedRow {
    alignas(64) int8_t numbers[most_rank];
    BlockFacts facts[most_rank / 32];

    INLINE_MEMBER Codes fill(const float* x, int width) {
        for (int b = 0; b * 32 < width; b++) {
            const int end = width - b * 32 < 32 ? width - b * 32 : 32;
            float largest = 0.0f;
            for (int i = 0; i < end; i++) largest = __builtin_fmaxf(largest, __builtin_fabsf(x[b * 32 + i]));
            const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
            int32_t sum = 0;
            for (int i = 0; i < 32; i++) {
                const int code = i < end ? static_cast<int>(__builtin_rintf(x[b * 32 + i] * inverse)) : 0;
                numbers[b * 32 + i] = static_cast<int8_t>(code);
                sum += code;
            }
            facts[b] = {};
            facts[b].scale = largest / 127.0f;
            facts[b].minus_128 = -128 * sum;
        }
        return {numbers, facts, 1};
    }
};

// Whole-number sums of a register's outputs over `groups` times four inputs.
#if defined(__AVX512VNNI__)
INLINE Ints multiply_block(const uint8_t* panel, const int8_t* codes, int groups, const BlockFacts& facts, int) {
    __m512i sum = _mm512_set1_epi32(facts.minus_128);  // panels are multiplied as unsigned numbers, 128 too large
    for (int g = 0; g < groups; g++) {
        int32_t four;
        __builtin_memcpy(&four, codes + g * 4, 4);
        const __m512i numbers = _mm512_xor_si512(_mm512_loadu_si512(panel + g * 64), _mm512_set1_epi8(-128));
        sum = _mm512_dpbusd_epi32(sum, numbers, _mm512_set1_epi32(four));
    }
    return reinterpret_cast<Ints>(sum);
}
INLINE Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(v)); }
#elif defined(__AVX2__)
INLINE Ints multiply_block(const uint8_t* panel, const int8_t* codes, int groups, const BlockFacts&, int half) {
    __m256i sum = _mm256_setzero_si256();
    for (int g = 0; g < groups; g++) {
        int32_t four;
        __builtin_memcpy(&four, codes + g * 4, 4);
        const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + g * 64 + half * 32));
        // Unsigned times signed: two products of at most 127 * 127 fit 16 bits.
        const __m256i signs = _mm256_sign_epi8(_mm256_set1_epi32(four), numbers);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(numbers), signs);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return reinterpret_cast<Ints>(sum);
}
INLINE Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(reinterpret_cast<__m256i>(v)); }
#else
INLINE Ints multiply_block(const uint8_t* panel, const int8_t* codes, int groups, const BlockFacts&, int part) {
    Ints sum{};
    for (int g = 0; g < groups; g++)
        for (int lane = 0; lane < lanes; lane++)
            for (int j = 0; j < 4; j++)
                sum[lane] += static_cast<int8_t>(panel[g * 64 + (part * lanes + lane) * 4 + j]) * codes[g * 4 + j];
    return sum;
}
INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }
#endif

// Panels begin .. end of `matrix` with the same n rows: calls body(panel, sums), sums[n][16].
template <int n, typename Body>
INLINE void multiply_int8_panels(const Panels& matrix, int begin, int end, const Codes* x, const Body& body) {
    constexpr int registers = adapter_panel / lanes;
    for (int panel = begin; panel < end; panel++) {
        const uint8_t* codes = matrix.data + panel * matrix.panel_bytes();
        const float* scales = reinterpret_cast<const float*>(codes + matrix.code_bytes());
        Floats totals[n][registers]{};
        for (int b = 0; b * 32 < matrix.inputs; b++, codes += 8 * 64) {
            const int left = (matrix.inputs - b * 32 + 3) / 4;
            for (int i = 0; i < n; i++) {
                const int64_t at = b * x[i].stride;
                const BlockFacts& facts = x[i].facts[at];
                for (int v = 0; v < registers; v++) {
                    const int8_t* row = x[i].codes + at * 32;
                    const Ints whole = left >= 8   ? multiply_block(codes, row, 8, facts, v)
                                       : left == 4 ? multiply_block(codes, row, 4, facts, v)
                                                   : multiply_block(codes, row, left, facts, v);
                    totals[i][v] = multiply_add(to_floats(whole), all(facts.scale), totals[i][v]);
                }
            }
        }
        for (int i = 0; i < n; i++)
            for (int v = 0; v < registers; v++) totals[i][v] = totals[i][v] * load(scales + v * lanes);
        body(panel, totals);
    }
}

template <typename Body>
INLINE void multiply_int8_panels(const Panels& matrix, int begin, int end, const Codes* x, int rows, const Body& body) {
    switch (rows) {
        case 1: return multiply_int8_panels<1>(matrix, begin, end, x, body);
        case 2: return multiply_int8_panels<2>(matrix, begin, end, x, body);
        case 3: return multiply_int8_panels<3>(matrix, begin, end, x, body);
        case 4: return multiply_int8_panels<4>(matrix, begin, end, x, body);
    }
}

}  // namespace
}  // namespace tokenworks::cpu
