// The two products of attention over one segment of bytes. Both are sums of whole numbers, so every instruction set gets
// the same ones, in whatever order. Queries have 8 bits; the weights of V have 15, since most of them are small.
#pragma once

#include "byte_cache.h"

namespace tokenworks::cpu {
namespace {

// What a register of K or V becomes (four codes for each lane), and how query codes are written down for it.
#if defined(__AVX512VNNI__)

constexpr int byte_rows_at_once = 6, registers_at_once = 4;
typedef int8_t QueryCode;
INLINE int query_place(int d) { return d; }  // of four

INLINE __m512i repeated(const void* four_bytes) {
    int32_t bits_;
    __builtin_memcpy(&bits_, four_bytes, sizeof bits_);
    return _mm512_set1_epi32(bits_);
}

struct KCodes {
    __m512i codes;
    KCodes() = default;
    INLINE_MEMBER explicit KCodes(const uint8_t* p) : codes(_mm512_loadu_si512(p)) {}
    INLINE_MEMBER Ints add(Ints sum, const QueryCode* q) const {
        return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), codes, repeated(q)));
    }
};

struct VCodes {
    __m512i even, odd;
    VCodes() = default;
    INLINE_MEMBER explicit VCodes(const int8_t* p) {
        const __m512i codes = _mm512_loadu_si512(p);
        even = _mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 8);
        odd = _mm512_srai_epi16(codes, 8);
    }
    INLINE_MEMBER Ints add(Ints sum, const int16_t* weights) const {
        const __m512i first = _mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum), even, repeated(weights));
        return reinterpret_cast<Ints>(_mm512_dpwssd_epi32(first, odd, repeated(weights + 2)));
    }
};

#elif defined(__AVX2__)

// Bytes would saturate in vpmaddubsw, and making their signs fit costs as much as 16-bit products do.
constexpr int byte_rows_at_once = 4, registers_at_once = 2;
typedef int16_t QueryCode;
INLINE int query_place(int d) { return v_place(d); }

INLINE __m256i repeated(const void* four_bytes) {
    int32_t bits_;
    __builtin_memcpy(&bits_, four_bytes, sizeof bits_);
    return _mm256_set1_epi32(bits_);
}

INLINE Ints add_pairs(Ints sum, __m256i even, __m256i odd, const int16_t* four) {
    const __m256i first = _mm256_add_epi32(reinterpret_cast<__m256i>(sum), _mm256_madd_epi16(even, repeated(four)));
    return reinterpret_cast<Ints>(_mm256_add_epi32(first, _mm256_madd_epi16(odd, repeated(four + 2))));
}

struct KCodes {
    __m256i even, odd;
    KCodes() = default;
    INLINE_MEMBER explicit KCodes(const uint8_t* p) {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
        odd = _mm256_srli_epi16(codes, 8);
    }
    INLINE_MEMBER Ints add(Ints sum, const QueryCode* q) const { return add_pairs(sum, even, odd, q); }
};

struct VCodes {
    __m256i even, odd;
    VCodes() = default;
    INLINE_MEMBER explicit VCodes(const int8_t* p) {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        even = _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8);
        odd = _mm256_srai_epi16(codes, 8);
    }
    INLINE_MEMBER Ints add(Ints sum, const int16_t* weights) const { return add_pairs(sum, even, odd, weights); }
};

#else

constexpr int byte_rows_at_once = 2, registers_at_once = 1;
typedef int16_t QueryCode;
INLINE int query_place(int d) { return v_place(d); }

template <typename Code>
struct Codes {
    int16_t codes[4][lanes];
    Codes() = default;
    INLINE_MEMBER explicit Codes(const Code* p) {
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < lanes; i++) codes[j][i] = p[4 * i + (j & 1) * 2 + j / 2];
    }
    INLINE_MEMBER Ints add(Ints sum, const int16_t* four) const {
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < lanes; i++) sum[i] += codes[j][i] * four[j];
        return sum;
    }
};
typedef Codes<uint8_t> KCodes;
typedef Codes<int8_t> VCodes;

#endif

static_assert(registers_at_once * lanes % panel == 0 || panel % (registers_at_once * lanes) == 0);

// sums[r][w] takes in the products of four codes in each lane of register w with the four numbers of row r.
template <int R, int W, typename Codes, typename Register, typename Four>
INLINE void add_fours(const Register& register_at, const Four& four_of, Ints (&sums)[R][W]) {
    if constexpr (lanes == 16) {  // the rows' numbers stay in registers
        UNROLL for (int w = 0; w < W; w++) {
            const Codes codes(register_at(w));
            UNROLL for (int r = 0; r < R; r++) sums[r][w] = codes.add(sums[r][w], four_of(r));
        }
    } else {  // the codes do
        Codes codes[W];
        UNROLL for (int w = 0; w < W; w++) codes[w] = Codes(register_at(w));
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int w = 0; w < W; w++) sums[r][w] = codes[w].add(sums[r][w], four_of(r));
    }
}

// out [R][segment]: sums of codes of q [R][q_step] and W registers of K from position `at` on. `start` [R] is what each
// row's sums begin with.
template <int R, int W>
INLINE void score_bytes(const QueryCode* q, int q_step, const int32_t* start, const BytePanels& from, int at, int size,
                        int32_t* out) {
    Ints sums[R][W];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int w = 0; w < W; w++) sums[r][w] = start[r] - Ints{};
    const uint8_t* k[W];
    UNROLL for (int w = 0; w < W; w++) k[w] = from.k[(at + w * lanes) / panel] + (at + w * lanes) % panel * 4;
    for (int d = 0; d < size; d += 4) {
        add_fours<R, W, KCodes>([&](int w) { return k[w]; }, [&](int r) { return q + r * q_step + d; }, sums);
        UNROLL for (int w = 0; w < W; w++) k[w] += from.k_step;
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int w = 0; w < W; w++)
            __builtin_memcpy(out + r * segment + at + w * lanes, &sums[r][w], sizeof sums[r][w]);
}

// out [R][out_step], W registers of dimensions from `first` on, over the segment's positions [begin, end), rounded to
// fours, where weights are 0.
template <int R, int W>
INLINE void mix_bytes(const int16_t* weights, const BytePanels& from, int begin, int end, int first, float* out,
                      int64_t out_step) {
    Ints sums[R][W];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int w = 0; w < W; w++) sums[r][w] = Ints{};
    for (int at = begin / 4 * 4; at < end;) {
        const int8_t* v = from.v[at / panel] + at % panel / 4 * from.v_step + 4 * first;
        const int stop = at / panel * panel + panel;
        for (const int last = stop < end ? stop : end; at < last; at += 4, v += from.v_step) {
            add_fours<R, W, VCodes>([&](int w) { return v + 4 * w * lanes; },
                                    [&](int r) { return weights + r * segment + at; }, sums);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int w = 0; w < W; w++)
            store(out + r * out_step + first + w * lanes, __builtin_convertvector(sums[r][w], Floats));
}

// All positions [from, end) of the segment, a whole number of panels more or less.
template <int R>
INLINE void score_segment(const QueryCode* q, int q_step, const int32_t* start, const BytePanels& from, int begin, int end,
                          int size, int32_t* out) {
    int at = begin;
    for (; at + registers_at_once * lanes <= whole_panels(end); at += registers_at_once * lanes)
        score_bytes<R, registers_at_once>(q, q_step, start, from, at, size, out);
    for (; at < end; at += lanes) score_bytes<R, 1>(q, q_step, start, from, at, size, out);
}

// All `wide` dimensions: out [R][wide].
template <int R>
INLINE void mix_segment(const int16_t* weights, const BytePanels& from, int begin, int end, int wide, float* out) {
    int at = 0;
    for (; at + registers_at_once * lanes <= wide; at += registers_at_once * lanes)
        mix_bytes<R, registers_at_once>(weights, from, begin, end, at, out, wide);
    for (; at < wide; at += lanes) mix_bytes<R, 1>(weights, from, begin, end, at, out, wide);
}

}  // namespace
}  // namespace tokenworks::cpu
