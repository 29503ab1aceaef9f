// What the kernels of AVX-512, with and without BF16, and of AMX share: reading a panel's codes and scales, and adding a block's sums to a total.
// As they share it, they give the same bits.
#pragma once

#include <immintrin.h>

#include "linear.h"

namespace tokenworks::cpu {

// The kernels of avx512.cpp, and those with avx512_bf16.cpp's in their places.
extern const LinearKernels avx512_linear;
LinearKernels avx512_bf16_linear();

namespace {

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE __m512i load(const uint8_t* p) { return _mm512_loadu_si512(p); }

INLINE __m512 load_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// E8M0's powers of two are added to the exponent of the input's scale: one instruction of the multiplying pipes less. What
// is added is e - lifted, never below 0, so that an infinite scale stays infinite and a zero becomes no negative number.
// Totals are then 2^48 times too large, until `completed`.
constexpr int lifted = 79;

// 16 scales, as floats; E8M0's as what is added to a float's bits.
template <Layout layout>
INLINE __m512 load_scales(const uint8_t* scales, int part) {
    constexpr Scales kind = row_of(layout).scales;
    if constexpr (kind == Scales::f16) return load_halves(reinterpret_cast<const uint16_t*>(scales) + part * 16);
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales) + part);
    if constexpr (kind == Scales::e4m3) return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7));
    const __m128i steps = _mm_subs_epu8(bytes, _mm_set1_epi8(lifted));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(steps), 23));
}

// 32 inputs' codes, as the unsigned numbers of BlockFacts.
template <Layout layout>
INLINE void load_codes(const uint8_t* group, __m512i (&rows)[8]) {
    constexpr Codes kind = row_of(layout).codes;
    if constexpr (kind == Codes::i8) {
        UNROLL for (int i = 0; i < 8; i++) rows[i] = _mm512_xor_si512(load(group + i * 64), _mm512_set1_epi8(-128));
        return;
    }
    const __m512i low_half = _mm512_set1_epi8(15);
    UNROLL for (int i = 0; i < 4; i++) {
        const __m512i both = load(group + i * 64);
        rows[i] = _mm512_and_si512(both, low_half);
        rows[i + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
    }
    if constexpr (kind == Codes::e2m1) {
        const __m512i numbers =
            _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
        UNROLL for (int i = 0; i < 8; i++) rows[i] = _mm512_shuffle_epi8(numbers, rows[i]);
    }
}

// The scales (and minimums) of 32 inputs of 16 features.
template <Layout layout>
struct BlockScales {
    static constexpr int parts = 32 / row_of(layout).block;
    __m512 scales[parts], minimum;
};

template <Layout layout>
INLINE BlockScales<layout> load_block_scales(const uint8_t* group) {
    BlockScales<layout> read;
    const uint8_t* at = group + code_bytes(layout);
    if constexpr (row_of(layout).scales != Scales::none)
        UNROLL for (int p = 0; p < read.parts; p++) read.scales[p] = load_scales<layout>(at, p);
    if constexpr (row_of(layout).minimums) read.minimum = load_scales<layout>(at, 1);
    return read;
}

// `sums` are a block's whole-number sums, of each part that has scales of its own.
template <Layout layout>
INLINE __m512 add_block(__m512 total, const __m512i (&sums)[32 / row_of(layout).block], const BlockScales<layout>& by,
                        const BlockFacts& facts) {
    __m512 scaled = _mm512_cvtepi32_ps(sums[0]);
    if constexpr (row_of(layout).scales == Scales::e8m0) {
        const __m512i input_scale = _mm512_castps_si512(_mm512_set1_ps(facts.scale));
        const __m512i both = _mm512_add_epi32(input_scale, _mm512_castps_si512(by.scales[0]));
        const __m512i infinite = _mm512_set1_epi32(0x7f800000);
        return _mm512_fmadd_ps(scaled, _mm512_castsi512_ps(_mm512_min_epu32(both, infinite)), total);
    }
    if constexpr (row_of(layout).scales != Scales::none) {
        scaled = _mm512_mul_ps(scaled, by.scales[0]);
        UNROLL for (int p = 1; p < by.parts; p++)
            scaled = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[p]), by.scales[p], scaled);
    }
    total = _mm512_fmadd_ps(scaled, _mm512_set1_ps(facts.scale), total);
    if constexpr (row_of(layout).minimums)
        total = _mm512_fmadd_ps(by.minimum, _mm512_set1_ps(facts.scaled_sum), total);
    return total;
}

// A total after the last block.
template <Layout layout>
INLINE __m512 completed(__m512 total) {
    if constexpr (row_of(layout).scales == Scales::e8m0) return _mm512_mul_ps(total, _mm512_set1_ps(0x1p-48f));
    return total;
}

}  // namespace
}  // namespace tokenworks::cpu
