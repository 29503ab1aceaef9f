// The two products of attention over one segment: scores = q k and mixed = weights v, for a few query rows at a time
// whose sums stay in registers. Every sum runs in the order of dimensions or positions, so how rows are grouped does not
// show in the result.
#pragma once

#include "float_cache.h"

namespace tokenworks::cpu {
namespace {

// Sums kept in registers: rows_at_once * panels_at_once * panel / lanes.
#if defined(__AVX512F__)
constexpr int rows_at_once = 6, panels_at_once = 4;
#elif defined(__AVX2__)
constexpr int rows_at_once = 6, panels_at_once = 1;
#else
constexpr int rows_at_once = 3, panels_at_once = 1;
#endif

// out [R][segment] from q [R][q_step]; W panels from `first` on.
template <int R, int W, typename T>
INLINE void scores(const float* q, int64_t q_step, const Panels<T>& from, int first, int head_size, float* out) {
    constexpr int registers = W * panel / lanes;
    Floats sums[R][registers];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < registers; c++) sums[r][c] = Floats{};
    const T* k[W];
    UNROLL for (int w = 0; w < W; w++) k[w] = from.k[first + w];
    for (int d = 0; d < head_size; d++) {
        Floats column[registers];
        UNROLL for (int c = 0; c < registers; c++)
            column[c] = load(k[c * lanes / panel] + d * from.k_step + c * lanes % panel);
        UNROLL for (int r = 0; r < R; r++) {
            const Floats x = all(q[r * q_step + d]);
            UNROLL for (int c = 0; c < registers; c++) sums[r][c] = multiply_add(x, column[c], sums[r][c]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < registers; c++) store(out + r * segment + first * panel + c * lanes, sums[r][c]);
}

// out [R][out_step], W * panel dimensions from `first` on, over positions [begin, end) of the segment.
template <int R, int W, typename T>
INLINE void mix(const float* weights, const Panels<T>& from, int begin, int end, int first, float* out,
                int64_t out_step) {
    constexpr int registers = W * panel / lanes;
    Floats sums[R][registers];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < registers; c++) sums[r][c] = Floats{};
    for (int at = begin; at < end;) {
        const T* v = from.v[at / panel] + at % panel * from.v_step + first;
        const int stop = at / panel * panel + panel;
        for (const int last = stop < end ? stop : end; at < last; at++, v += from.v_step) {
            Floats row[registers];
            UNROLL for (int c = 0; c < registers; c++) row[c] = load(v + c * lanes);
            UNROLL for (int r = 0; r < R; r++) {
                const Floats x = all(weights[r * segment + at]);
                UNROLL for (int c = 0; c < registers; c++) sums[r][c] = multiply_add(x, row[c], sums[r][c]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < registers; c++) store(out + r * out_step + first + c * lanes, sums[r][c]);
}

// All rows' scores of positions [from, to), a whole number of panels more or less: [rows][segment].
template <typename T>
void all_scores(const float* q, int rows, const Panels<T>& k, int from, int to, int head_size, float* out) {
    const int end = (to + panel - 1) / panel;
    int p = from / panel;
    for (; p + panels_at_once <= end; p += panels_at_once)
        by_rows<rows_at_once>(rows, [&]<int R>(int row) {
            scores<R, panels_at_once>(q + int64_t{row} * head_size, head_size, k, p, head_size, out + row * segment);
        });
    for (; p < end; p++)
        by_rows<rows_at_once>(rows, [&]<int R>(int row) {
            scores<R, 1>(q + int64_t{row} * head_size, head_size, k, p, head_size, out + row * segment);
        });
}

template <typename T>
void all_mixed(const float* weights, int rows, const Panels<T>& v, int from, int to, int wide, float* out) {
    int column = 0;
    for (; column + panels_at_once * panel <= wide; column += panels_at_once * panel)
        by_rows<rows_at_once>(rows, [&]<int R>(int row) {
            mix<R, panels_at_once>(weights + row * segment, v, from, to, column, out + int64_t{row} * wide, wide);
        });
    for (; column < wide; column += panel)
        by_rows<rows_at_once>(rows, [&]<int R>(int row) {
            mix<R, 1>(weights + row * segment, v, from, to, column, out + int64_t{row} * wide, wide);
        });
}

}  // namespace
}  // namespace tokenworks::cpu
