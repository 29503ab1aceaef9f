// How K and V of floats lie in the cache, and how a segment of positions becomes float32 panels.
//
// A block holds, for each KV head, K as [head_size][block_tokens] and V as [block_tokens][head_size]: so a register of K
// is one dimension of many positions, and scores add up side by side; a register of V is many dimensions of a position.
#pragma once

#include "task.h"

namespace tokenworks::cpu {
namespace {

// 16 bits saturate: an infinity in the cache would turn other positions' zero weights into NaN.
INLINE Floats within(Floats v, float most) { return larger(smaller(v, all(most)), all(-most)); }
INLINE Floats storable(Floats v, const uint16_t*) { return within(v, 65504.0f); }
INLINE Floats storable(Floats v, const Bfloat*) { return within(v, 0x1.fep127f); }
INLINE Floats storable(Floats v, const float*) { return v; }

template <typename T>
void store_row(const AttendArgs& args, const int32_t* table, int row) {
    const int tokens = args.cache.block_tokens, size = args.head_size;
    const int position = args.positions[row], slot = position % tokens;
    const int64_t at = table[position / tokens] * args.cache.block_stride;
    T* k = reinterpret_cast<T*>(args.cache.k + at) + slot;
    T* v = reinterpret_cast<T*>(args.cache.v + at) + int64_t{slot} * size;
    for (int head = 0; head < args.kv_heads; head++, k += int64_t{size} * tokens, v += int64_t{size} * tokens)
        each(size, [&](int d, auto get, auto) {
            const int n = size - d < lanes ? size - d : lanes;
            T elements[lanes];
            store(elements, storable(get(args.k.row(row) + head * size + d), elements));
            for (int i = 0; i < n; i++) k[int64_t{d + i} * tokens] = elements[i];
            if (args.latent) return;
            store(elements, storable(get(args.v.row(row) + head * size + d), elements));
            __builtin_memcpy(v + d, elements, static_cast<size_t>(n) * sizeof(T));
        });
}

// A segment's positions as its kernels read them: element (d, i) of panel p's K is k[p][d * k_step + i], of its V
// v[p][i * v_step + d].
template <typename T>
struct Panels {
    const T *k[panels], *v[panels];
    int64_t k_step, v_step;
};

// The K and V of the block that holds a position.
template <typename T>
INLINE const T* block_of(const Source& source, const char* base, int position) {
    const Cache& cache = source.args->cache;
    const int64_t offset = int64_t{source.kv_head} * cache.block_tokens * source.args->head_size;
    return reinterpret_cast<const T*>(base + source.table[position / cache.block_tokens] * cache.block_stride) + offset;
}

template <typename T>
INLINE Panels<T> panels_in_place(const Source& source, int start, int from, int to) {
    const Cache& cache = source.args->cache;
    const int size = source.args->head_size;
    Panels<T> result;
    result.k_step = cache.block_tokens;
    result.v_step = size;
    for (int p = from / panel; p * panel < to; p++) {
        const int position = start + p * panel, slot = position % cache.block_tokens;
        result.k[p] = block_of<T>(source, cache.k, position) + slot;
        result.v[p] = block_of<T>(source, cache.v, position) + int64_t{slot} * size;
    }
    return result;
}

INLINE float number(float value) { return value; }
INLINE float number(uint16_t half) { return half_to_float(half); }
INLINE float number(Bfloat value) { return bfloat_to_float(value.bits); }

// Calls body(a null pointer to the cache's elements).
template <typename Body>
INLINE void with_elements(const Cache& cache, const Body& body) {
    switch (cache.type) {
        case CacheType::float16: return body(static_cast<const uint16_t*>(nullptr));
        case CacheType::bfloat16: return body(static_cast<const Bfloat*>(nullptr));
        default: return body(static_cast<const float*>(nullptr));
    }
}

// Position by position, for blocks that panels do not fit.
template <typename T>
void gather(const Source& source, int start, int from, int to, float* k, float* v) {
    const Cache& cache = source.args->cache;
    const int size = source.args->head_size, wide = whole_panels(size);
    for (int i = from; i < to; i++) {
        const int slot = (start + i) % cache.block_tokens;
        const T* from_k = block_of<T>(source, cache.k, start + i) + slot;
        const T* from_v = block_of<T>(source, cache.v, start + i) + int64_t{slot} * size;
        float* to_k = k + (i / panel) * size * panel + i % panel;
        for (int d = 0; d < size; d++) to_k[d * panel] = number(from_k[int64_t{d} * cache.block_tokens]);
        for (int d = 0; d < size && !source.args->latent; d++) v[int64_t{i} * wide + d] = number(from_v[d]);
    }
}

void gather_rows(const Source& source, int start, int from, int to, float* k, float* v) {
    const int size = source.args->head_size, wide = whole_panels(size);
    for (int i = from; i < to; i++) {
        const int row = source.first_row + start + i;
        const float* from_k = source.args->k.row(row) + source.kv_head * size;
        const float* from_v = source.args->v.row(row) + source.kv_head * size;
        float* to_k = k + (i / panel) * size * panel + i % panel;
        for (int d = 0; d < size; d++) to_k[d * panel] = from_k[d];
        for (int d = 0; d < size; d++) v[int64_t{i} * wide + d] = from_v[d];
    }
}

template <typename T>
void widen(const Panels<T>& panels_, int from, int to, int size, bool values, float* k, float* v) {
    for (int p = from / panel; p * panel < to; p++) {
        float* to_k = k + p * size * panel;
        float* to_v = v + p * panel * size;
        for (int d = 0; d < size; d++)
            for (int i = 0; i < panel; i += lanes)
                store(to_k + d * panel + i, load(panels_.k[p] + d * panels_.k_step + i));
        for (int at = 0; at < panel * size && values; at += lanes) store(to_v + at, load(panels_.v[p] + at));
    }
}

// `keys` with V, the last `latent` dimensions of K, copied to v: [segment][whole_panels(latent)].
Panels<float> values_of_keys(const Panels<float>& keys, int from, int to, int size, int latent, float* v) {
    Panels<float> result = keys;
    result.v_step = whole_panels(latent);
    for (int p = from / panel; p * panel < to; p++) {
        const float* k = keys.k[p] + (size - latent) * keys.k_step;
        float* panel_v = v + p * panel * result.v_step;
        result.v[p] = panel_v;
        int d = 0;
        for (; d + lanes <= latent; d += lanes)
            for (int i = 0; i < panel; i += lanes) {
                Floats square[lanes];
                UNROLL for (int n = 0; n < lanes; n++) square[n] = load(k + (d + n) * keys.k_step + i);
                transpose(square);
                UNROLL for (int n = 0; n < lanes; n++) store(panel_v + (i + n) * result.v_step + d, square[n]);
            }
        for (; d < latent; d++)
            for (int i = 0; i < panel; i++) panel_v[i * result.v_step + d] = k[d * keys.k_step + i];
    }
    return result;
}

// Positions [from, to) of the segment at `start`, copied to k and v: segment * whole_panels(head_size) floats each.
Panels<float> panels_copied(const Source& source, int start, int from, int to, float* k, float* v) {
    const AttendArgs& args = *source.args;
    const int size = args.head_size;
    if (!args.cache.k)
        gather_rows(source, start, from, to, k, v);
    else
        with_elements(args.cache, [&]<typename T>(const T*) {
            if (in_place(args))
                widen(panels_in_place<T>(source, start, from, to), from, to, size, !args.latent, k, v);
            else
                gather<T>(source, start, from, to, k, v);
        });
    Panels<float> result;
    result.k_step = panel;
    result.v_step = whole_panels(size);
    for (int p = 0; p < panels; p++) {
        result.k[p] = k + p * size * panel;
        result.v[p] = v + int64_t{p} * panel * result.v_step;
    }
    return result;
}

}  // namespace
}  // namespace tokenworks::cpu
