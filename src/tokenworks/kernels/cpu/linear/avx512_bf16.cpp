// AVX-512 with BF16: vdpbf16ps adds two products of bfloat16s to each of 16 sums, twice as many as a product of floats does
// in the same time. So weights of bfloat16 are multiplied with inputs rounded to it, as graphics processors do; other
// weights with what AVX-512 multiplies them with. Subnormal numbers count as zeros, for this instruction has no others.
#include "avx512.h"

namespace tokenworks::cpu {
namespace {

void round_block(const float* x, uint16_t* bfloats) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
    _mm512_storeu_si512(bfloats, reinterpret_cast<__m512i>(rounded));
}

// The same two inputs for all 16 features.
INLINE __m512bh pair(const uint16_t* x) {
    int32_t value;
    __builtin_memcpy(&value, x, 4);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(value));
}

template <int height>
INLINE void add_pair(__m512 (&totals)[height], const uint8_t* panel, const uint16_t* x, int i) {
    const __m512bh weights = reinterpret_cast<__m512bh>(load(panel + i * 64));
    UNROLL for (int r = 0; r < height; r++) totals[r] = _mm512_dpbf16_ps(totals[r], weights, pair(x + r * 32 + i * 2));
}

template <int height>
void tile(const PackedMatrix& shape, const uint8_t* panel, const Prepared& prepared, const Fetch& fetch, float* out) {
    const uint16_t* x = prepared.bfloats;
    const uint8_t* soon = fetch.data;
    __m512 totals[height];
    UNROLL for (int r = 0; r < height; r++) totals[r] = _mm512_setzero_ps();
    const int64_t pairs = (shape.in_features + 1) / 2;
    for (int64_t b = pairs / 16; b > 0; b--, panel += 16 * 64, x += height * 32) {
        for (int64_t at = 0; at < fetch.block_bytes; at += 64, soon += 64) __builtin_prefetch(soon, 0, 2);
        UNROLL for (int i = 0; i < 16; i++) add_pair(totals, panel, x, i);
    }
    for (int i = 0; i < pairs % 16; i++) add_pair(totals, panel, x, i);
    UNROLL for (int r = 0; r < height; r++) _mm512_store_ps(out + r * panel_width, totals[r]);
}

LinearKernels table;

}  // namespace

LinearKernels avx512_bf16_linear() {
    LinearKernels kernels = avx512_linear;
    kernels.round_block = round_block;
    TileKernel* tiles = kernels.tiles[static_cast<int>(Layout::bf16)];
    tiles[0] = tile<1>, tiles[1] = tile<2>, tiles[2] = tile<4>, tiles[3] = tile<8>, tiles[4] = tile<16>;
    return kernels;
}

void linear_avx512_bf16(Kernels& kernels) {
    table = avx512_bf16_linear();
    put<table>(kernels);
}

}  // namespace tokenworks::cpu
