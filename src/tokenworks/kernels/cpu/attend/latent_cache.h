// How latents of bytes lie in the cache: one vector of each position that is K for all heads, and whose last columns are V.
//
// The columns that rotary positions turn and the latent itself differ too much in size to share a scale: each of the two
// parts has its own, and is rotated by a Walsh-Hadamard transform before it is rounded, as K of other layers is
// (byte_cache.h). What heads mix of rotated latents is rotated back once, at the end.
//
// A block holds the codes + 128 as K's lie, [columns / 4][block_tokens][4], each part's columns rounded up to fours with
// codes of 0; then for each position the turned part's scale, then log2 of the latent's. V is not kept: four positions of
// four columns are one register of 16 bytes, which a shuffle turns.
#pragma once

#include "byte_cache.h"

namespace tokenworks::cpu {
namespace {

INLINE int turned_columns(const AttendArgs& args) { return args.head_size - args.latent; }

// Columns of codes in the cache.
INLINE int latent_columns(const AttendArgs& args) { return fours(turned_columns(args)) + fours(args.latent); }

INLINE float* latent_facts(const AttendArgs& args, char* block) {
    return reinterpret_cast<float*>(block + int64_t{args.cache.block_tokens} * latent_columns(args));
}

// n columns of x, rotated; their scale is returned. codes: fours(n), the rest 0.
INLINE float rotated_codes(const float* x, int n, int8_t* codes) {
    float turned[largest_byte_head];
    __builtin_memcpy(turned, x, static_cast<size_t>(n) * sizeof(float));
    rotate(turned, n);
    const float scale = quantise(turned, n, codes);
    for (int d = n; d < fours(n); d++) codes[d] = 0;
    return scale;
}

void store_latent_row(const AttendArgs& args, const int32_t* table, int row) {
    const int tokens = args.cache.block_tokens, slot = args.positions[row] % tokens;
    const int turned = turned_columns(args), columns = latent_columns(args);
    char* block = args.cache.k + table[args.positions[row] / tokens] * args.cache.block_stride;
    alignas(64) int8_t codes[2 * largest_byte_head + 3];
    float* facts = latent_facts(args, block);
    facts[slot] = rotated_codes(args.k.row(row), turned, codes);
    facts[tokens + slot] = __builtin_log2f(rotated_codes(args.k.row(row) + turned, args.latent, codes + fours(turned)));
    for (int d = 0; d < columns; d += 4) {
        uint32_t four;
        __builtin_memcpy(&four, codes + d, sizeof four);
        four ^= 0x80808080u;
        __builtin_memcpy(block + (int64_t{d} / 4 * tokens + slot) * 4, &four, sizeof four);
    }
}

INLINE char* latent_block(const Source& source, int position) {
    const Cache& cache = source.args->cache;
    return cache.k + source.table[position / cache.block_tokens] * cache.block_stride;
}

// A segment's positions as K, in place, or where panels do not fit blocks copied to `memory`: 4 * segment bytes for every
// four columns.
INLINE BytePanels latent_keys(const Source& source, int start, int from, int to, char* memory) {
    const AttendArgs& args = *source.args;
    const int tokens = args.cache.block_tokens, columns = latent_columns(args);
    const bool whole = tokens % panel == 0;
    BytePanels result{};
    result.k_step = whole ? 4 * tokens : 4 * panel;
    for (int p = from / panel; p * panel < to; p++) {
        const int position = start + p * panel;
        if (whole) {
            result.k[p] = reinterpret_cast<const uint8_t*>(latent_block(source, position)) + position % tokens * 4;
            continue;
        }
        char* copy = memory + int64_t{p} * panel * columns;
        __builtin_memset(copy, 128, static_cast<size_t>(panel * columns));
        for (int i = 0; i < panel && p * panel + i < to; i++) {
            const char* block = latent_block(source, position + i) + (position + i) % tokens * 4;
            for (int g = 0; g < columns / 4; g++)
                __builtin_memcpy(copy + (g * panel + i) * 4, block + int64_t{g} * tokens * 4, 4);
        }
        result.k[p] = reinterpret_cast<const uint8_t*>(copy);
    }
    return result;
}

// Four positions of four columns, 16 codes + 128, become codes of four columns of four positions, in V's order.
INLINE void turn_four(const uint8_t* from, int8_t* to) {
    typedef uint8_t Sixteen __attribute__((vector_size(16)));
    Sixteen codes;
    __builtin_memcpy(&codes, from, sizeof codes);
#if defined(__clang__)
    codes = __builtin_shufflevector(codes, codes, 0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
#else
    codes = __builtin_shuffle(codes, Sixteen{0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15});
#endif
    codes ^= 0x80;
    __builtin_memcpy(to, &codes, sizeof codes);
}

// `keys` become those of the latent part alone, with V in `memory`: segment * wide bytes, wide a multiple of 16.
INLINE void latent_values(const AttendArgs& args, BytePanels& keys, int from, int to, int wide, int8_t* memory) {
    const int groups = fours(args.latent) / 4;
    keys.v_step = 4 * wide;
    for (int p = from / panel; p * panel < to; p++) {
        keys.k[p] += fours(turned_columns(args)) / 4 * keys.k_step;
        int8_t* v = memory + int64_t{p} * panel * wide;
        keys.v[p] = v;
        for (int g = 0; g < groups; g++)
            UNROLL for (int j = 0; j < panel / 4; j++)
                turn_four(keys.k[p] + g * keys.k_step + 16 * j, v + j * keys.v_step + 16 * g);
    }
}

}  // namespace
}  // namespace tokenworks::cpu
