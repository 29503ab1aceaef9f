// How K and V of bytes lie in the cache.
//
// Each position's K and V of a KV head have one scale of their own, so what is written is never touched again: a value
// is code * scale, codes -127..127 of the largest magnitude. Before that, K is rotated by a Walsh-Hadamard transform
// (as in QuaRot, arXiv 2404.00456), and so is q: it leaves q k as it is, and spreads the few large dimensions
// that many models' keys have over all of them, so that they do not take the codes from the others.
//
// A block holds, for each KV head, codes and then a float32 for each position:
//   K [head_size / 4][block_tokens][4] codes + 128: a register is four dimensions of many positions; then the scales
//   V [block_tokens / 4][head_size][4] codes: a register is four positions of many dimensions; then log2 of the scales
// The four positions of V lie in the order 0, 2, 1, 3: so the even bytes, and the odd ones, are neighbours.
// Head sizes or blocks that are no multiple of 4 have groups of 1 in place of 4.
#pragma once

#include "task.h"

namespace tokenworks::cpu {
namespace {

constexpr float least_scale = 0x1p-24f;  // below it codes are 0

INLINE int group_size(int n) { return n % 4 == 0 ? 4 : 1; }
INLINE int v_place(int i) { return (i & 1) << 1 | (i & 2) >> 1; }

// A KV head's part of a block of K or V, bytes: its codes, then its facts.
INLINE int64_t head_bytes(const AttendArgs& args) {
    return int64_t{args.cache.block_tokens} * (args.head_size + int64_t{sizeof(float)});
}
INLINE int64_t k_index(const AttendArgs& args, int slot, int d) {
    const int g = group_size(args.head_size);
    return (int64_t{d / g} * args.cache.block_tokens + slot) * g + d % g;
}
INLINE int64_t v_index(const AttendArgs& args, int slot, int d) {
    const int g = group_size(args.cache.block_tokens);
    return (int64_t{slot / g} * args.head_size + d) * g + (g == 4 ? v_place(slot % g) : 0);
}
INLINE float* facts_of(const AttendArgs& args, char* head) {
    return reinterpret_cast<float*>(head + int64_t{args.cache.block_tokens} * args.head_size);
}

// The bits of lanes whose number has the bit `distance`: of the sign.
template <int distance>
INLINE Ints signs() {
    Ints mask;
    for (int i = 0; i < lanes; i++) mask[i] = i & distance ? INT32_MIN : 0;
    return mask;
}

template <int distance>
INLINE Floats butterfly(Floats v) {
    return exchanged<distance>(v) + reinterpret_cast<Floats>(reinterpret_cast<Ints>(v) ^ signs<distance>());
}

INLINE int rotation_size(int head_size) { return head_size & -head_size; }

// The Walsh-Hadamard transform of every rotation_size elements; not normalised: lengths grow by its square root.
void rotate(float* x, int head_size) {
    const int n = rotation_size(head_size);
    int h = 1;
    if (n >= lanes) {
        for (int at = 0; at < head_size; at += lanes) {
            Floats v = butterfly<2>(butterfly<1>(load(x + at)));
            if constexpr (lanes > 4) v = butterfly<4>(v);
            if constexpr (lanes > 8) v = butterfly<8>(v);
            store(x + at, v);
        }
        h = lanes;
    }
    for (; h < n; h *= 2)
        for (int begin = 0; begin < head_size; begin += 2 * h)
            for (int at = begin; at < begin + h; at += h < lanes ? 1 : lanes) {
                if (h < lanes) {
                    const float a = x[at], b = x[at + h];
                    x[at] = a + b, x[at + h] = a - b;
                    continue;
                }
                const Floats a = load(x + at), b = load(x + at + h);
                store(x + at, a + b);
                store(x + at + h, a - b);
            }
}

INLINE float largest_magnitude(const float* x, int n) {
    Floats high{};
    each(n, [&](int at, auto get, auto) { high = larger(magnitude(get(x + at)), high); });
    const float found = largest(high);
    return found < 3e38f ? found : 3e38f;
}

// Codes of n values, with what a code is worth.
INLINE float quantise(const float* x, int n, int8_t* codes) {
    typedef int8_t Bytes __attribute__((vector_size(lanes)));
    const float high = largest_magnitude(x, n), scale = high / 127.0f;
    const float inverse = scale > least_scale ? 127.0f / high : 0.0f;
    each(n, [&](int at, auto get, auto) {
        // Adding it rounds to a whole number, which then stands in the low bits.
        const Floats value = smaller(larger(get(x + at) * inverse, all(-127.0f)), all(127.0f)) + all(0x1.8p23f);
        const Bytes low = __builtin_convertvector(reinterpret_cast<Ints>(value), Bytes);
        __builtin_memcpy(codes + at, &low, static_cast<size_t>(n - at < lanes ? n - at : lanes));
    });
    return scale > least_scale ? scale : least_scale;
}

void store_byte_row(const AttendArgs& args, const int32_t* table, int row) {
    const int tokens = args.cache.block_tokens, size = args.head_size;
    const int slot = args.positions[row] % tokens;
    const int64_t block = table[args.positions[row] / tokens] * args.cache.block_stride;
    char *k = args.cache.k + block, *v = args.cache.v + block;
    float rotated[largest_byte_head];
    alignas(64) int8_t codes[largest_byte_head];
    for (int head = 0; head < args.kv_heads; head++, k += head_bytes(args), v += head_bytes(args)) {
        __builtin_memcpy(rotated, args.k.row(row) + head * size, static_cast<size_t>(size) * sizeof(float));
        rotate(rotated, size);
        facts_of(args, k)[slot] = quantise(rotated, size, codes);
        const int group = group_size(size);
        for (int d = 0; d < size; d++) codes[d] = static_cast<int8_t>(codes[d] ^ -128);
        char* k_at = k + k_index(args, slot, 0);
        if (group == 4)
            for (int d = 0; d < size; d += 4, k_at += 4 * tokens) __builtin_memcpy(k_at, codes + d, 4);
        else
            for (int d = 0; d < size; d++, k_at += tokens) *k_at = static_cast<char>(codes[d]);
        facts_of(args, v)[slot] = __builtin_log2f(quantise(args.v.row(row) + head * size, size, codes));
        char* v_at = v + v_index(args, slot, 0);
        for (int d = 0, step = group_size(tokens); d < size; d++, v_at += step) *v_at = static_cast<char>(codes[d]);
    }
}

// The head's K and V in the block that holds a position.
struct ByteBlock {
    char *k, *v;
};

INLINE ByteBlock byte_block_of(const Source& source, int position) {
    const Cache& cache = source.args->cache;
    const int64_t offset = source.table[position / cache.block_tokens] * cache.block_stride +
                           source.kv_head * head_bytes(*source.args);
    return {cache.k + offset, cache.v + offset};
}

// A segment's positions as its kernels read them. Of panel p: K's codes of dimensions 4g .. 4g + 3 and position i begin
// at k[p] + g * k_step + 4 * i, V's of positions 4j .. 4j + 3 and dimension d at v[p] + j * v_step + 4 * d.
struct BytePanels {
    const uint8_t* k[panels];
    const int8_t* v[panels];
    int64_t k_step, v_step;
};

BytePanels byte_panels_in_place(const Source& source, int start, int from, int to) {
    const int tokens = source.args->cache.block_tokens, size = source.args->head_size;
    BytePanels result;
    result.k_step = 4 * tokens;
    result.v_step = 4 * size;
    for (int p = from / panel; p * panel < to; p++) {
        const int slot = (start + p * panel) % tokens;
        const ByteBlock block = byte_block_of(source, start + p * panel);
        result.k[p] = reinterpret_cast<const uint8_t*>(block.k) + 4 * slot;
        result.v[p] = reinterpret_cast<const int8_t*>(block.v) + int64_t{slot} * size;
    }
    return result;
}

// Code by code, to `memory`, 2 * segment * whole_panels(head_size) bytes.
BytePanels byte_panels_copied(const Source& source, int start, int from, int to, char* memory) {
    const AttendArgs& args = *source.args;
    const int wide = whole_panels(args.head_size), size = args.head_size;
    BytePanels result;
    result.k_step = 4 * panel;
    result.v_step = 4 * wide;
    for (int p = from / panel; p * panel < to; p++) {
        char *k = memory + p * panel * wide, *v = k + segment * wide;
        __builtin_memset(k, 128, static_cast<size_t>(panel * wide));
        __builtin_memset(v, 0, static_cast<size_t>(panel * wide));
        for (int i = 0; i < panel && p * panel + i < to; i++) {
            const int position = start + p * panel + i, slot = position % args.cache.block_tokens;
            const ByteBlock block = byte_block_of(source, position);
            for (int d = 0; d < size; d++) {
                k[d / 4 * result.k_step + 4 * i + d % 4] = block.k[k_index(args, slot, d)];
                v[i / 4 * result.v_step + 4 * d + v_place(i % 4)] = block.v[v_index(args, slot, d)];
            }
        }
        result.k[p] = reinterpret_cast<const uint8_t*>(k);
        result.v[p] = reinterpret_cast<const int8_t*>(v);
    }
    return result;
}

}  // namespace
}  // namespace tokenworks::cpu
