// A register of floats, whatever the instruction set: the same source is compiled once for each (see kernels.h on why
// everything is in an anonymous namespace). GCC's and Clang's vector types give + - * / and comparisons.
#pragma once

#include <cstdint>

#include "half.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tokenworks::cpu {
namespace {

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float Floats __attribute__((vector_size(lanes * 4)));
typedef int32_t Ints __attribute__((vector_size(lanes * 4)));

INLINE Floats all(float value) { return value - Floats{}; }

INLINE Floats load(const float* p) {
    Floats v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }

// The first n < lanes of them; the rest are zero, or left alone in memory.
INLINE Floats load_some(const float* p, int n) {
    Floats v{};
    __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
    return v;
}

INLINE void store_some(float* p, Floats v, int n) { __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof(float)); }

// Calls body(at, load, store) for every register's worth of `width` columns, the last one maybe partial.
template <typename Body>
INLINE void each(int width, const Body& body) {
    int at = 0;
    for (; at + lanes <= width; at += lanes)
        body(at, [](const float* p) { return load(p); }, [](float* p, Floats v) { store(p, v); });
    const int rest = width - at;
    if (rest)
        body(at, [rest](const float* p) { return load_some(p, rest); },
             [rest](float* p, Floats v) { store_some(p, v, rest); });
}

INLINE Floats load(const uint16_t* halves) {
#if defined(__AVX512F__)
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
#elif defined(__aarch64__)
    return reinterpret_cast<Floats>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves))));
#else
    Floats v;
    for (int i = 0; i < lanes; i++) v[i] = half_to_float(halves[i]);
    return v;
#endif
}

INLINE void store(uint16_t* halves, Floats v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(halves), _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(halves), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v))));
#else
    for (int i = 0; i < lanes; i++) halves[i] = float_to_half(v[i]);
#endif
}

typedef uint16_t HalfInts __attribute__((vector_size(lanes * 2)));

INLINE Floats load(const Bfloat* p) {
    HalfInts bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return reinterpret_cast<Floats>(__builtin_convertvector(bits, Ints) << 16);
}

// Rounded to nearest, ties to even.
INLINE void store(Bfloat* p, Floats v) {
    const Ints bits = reinterpret_cast<Ints>(v);
    const HalfInts rounded = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, HalfInts);
    __builtin_memcpy(p, &rounded, sizeof rounded);
}

// a * b + c; one rounding where the processor has it.
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return reinterpret_cast<Floats>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                              reinterpret_cast<float32x4_t>(b)));
#else
    return a * b + c;
#endif
}

// b where they do not compare. Compilers make two instructions of a > b ? a : b.
INLINE Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_maskz_max_ps(0xffff, a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

INLINE Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_maskz_min_ps(0xffff, a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

INLINE Floats magnitude(Floats a) { return reinterpret_cast<Floats>(reinterpret_cast<Ints>(a) & 0x7fffffff); }
INLINE Floats square_root(Floats a) {
#if defined(__AVX512F__)
    return _mm512_maskz_sqrt_ps(0xffff, a);  // GCC 12 warns of its own unmasked form
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(a);
#else
    for (int i = 0; i < lanes; i++) a[i] = __builtin_sqrtf(a[i]);
    return a;
#endif
}

// Bit i tells whether lane i of a comparison holds.
INLINE unsigned bits(Ints comparison) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(comparison));
#elif defined(__AVX2__)
    return static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(comparison)));
#else
    unsigned result = 0;
    for (int i = 0; i < lanes; i++) result |= static_cast<unsigned>(comparison[i] & 1) << i;
    return result;
#endif
}

// Lane i from lane i ^ distance.
template <int distance>
INLINE Floats exchanged(Floats v) {
    Ints from;
    for (int i = 0; i < lanes; i++) from[i] = i ^ distance;
#if defined(__clang__)
    Floats moved;
    for (int i = 0; i < lanes; i++) moved[i] = v[from[i]];
    return moved;
#else
    return __builtin_shuffle(v, from);
#endif
}

// Lanes whose number has the bit `distance` are exchanged with those of the other register that have not.
template <int distance>
INLINE void exchange(Floats& a, Floats& b) {
    Ints first, second;
    for (int i = 0; i < lanes; i++) {
        first[i] = i & distance ? lanes + (i ^ distance) : i;
        second[i] = i & distance ? lanes + i : i ^ distance;
    }
#if defined(__clang__)
    const Floats old_a = a, old_b = b;
    for (int i = 0; i < lanes; i++) {
        a[i] = i & distance ? old_b[i ^ distance] : old_a[i];
        b[i] = i & distance ? old_b[i] : old_a[i ^ distance];
    }
#else
    const Floats old = a;
    a = __builtin_shuffle(old, b, first);
    b = __builtin_shuffle(old, b, second);
#endif
}

template <int distance>
INLINE void exchange_all(Floats (&rows)[lanes]) {
#if defined(__clang__)
#pragma unroll
#else
#pragma GCC unroll 16
#endif
    for (int i = 0; i < lanes; i++)
        if (!(i & distance)) exchange<distance>(rows[i], rows[i | distance]);
}

// Lane j of row i and lane i of row j change places.
INLINE void transpose(Floats (&rows)[lanes]) {
    exchange_all<1>(rows);
    exchange_all<2>(rows);
    if constexpr (lanes > 4) exchange_all<4>(rows);
    if constexpr (lanes > 8) exchange_all<8>(rows);
}

// Across the register, always in the same order.
INLINE float sum(Floats v) {
    if constexpr (lanes > 8) v = v + exchanged<8>(v);
    if constexpr (lanes > 4) v = v + exchanged<4>(v);
    v = v + exchanged<2>(v);
    v = v + exchanged<1>(v);
    return v[0];
}

INLINE float largest(Floats v) {
    if constexpr (lanes > 8) v = larger(v, exchanged<8>(v));
    if constexpr (lanes > 4) v = larger(v, exchanged<4>(v));
    v = larger(v, exchanged<2>(v));
    v = larger(v, exchanged<1>(v));
    return v[0];
}

INLINE float sum_of_squares(const float* x, int n) {
    Floats total{};
    each(n, [&](int at, auto get, auto) {
        const Floats v = get(x + at);
        total = multiply_add(v, v, total);
    });
    return sum(total);
}

}  // namespace
}  // namespace tokenworks::cpu
