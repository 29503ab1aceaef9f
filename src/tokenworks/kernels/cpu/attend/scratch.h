// How attention cuts its work, and the memory it needs for that: shared with the executor, which owns the memory.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace tokenworks::cpu {

constexpr int panel = 16;     // positions whose scores are added up together
constexpr int segment = 128;  // positions whose softmax is computed together; segments begin at its multiples

constexpr int largest_byte_head = 512;  // elements of a head, or of a latent, that a cache of bytes takes

static inline int whole_panels(int n) { return (n + panel - 1) / panel * panel; }
static inline int fours(int n) { return (n + 3) / 4 * 4; }

// Bytes of K, or of V, of one layer in a block. A latent layer has no V, and of bytes two scales for each position.
static inline int64_t cache_bytes(CacheType type, int kv_heads, int head_size, int latent, int block_tokens) {
    const int64_t positions = int64_t{kv_heads} * block_tokens;
    if (latent && type == CacheType::int8) return positions * (fours(head_size - latent) + fours(latent) + 8);
    switch (type) {
        case CacheType::float32: return positions * head_size * 4;
        case CacheType::float16:
        case CacheType::bfloat16: return positions * head_size * 2;
        case CacheType::int8: return positions * (head_size + 4);
    }
    return 0;
}

// The most query rows of a task: about 96 with all the heads of a group.
static inline int attend_task_rows(int heads, int kv_heads) {
    const int rows = 96 * kv_heads / heads;
    return rows < 1 ? 1 : rows;
}

// Floats for `rows` (query, head) pairs: mixed values, maximum, sum.
static inline int64_t partial_floats(int64_t rows, int wide) { return rows * (wide + 2); }

// Of one thread: a partial result of a task, and what FloatPath, BytePath and LatentPath need: K and V of a segment;
// queries and scores; another partial result; scales and sums.
static inline int64_t attend_thread_floats(int heads, int kv_heads, int head_size) {
    const int64_t rows = int64_t{attend_task_rows(heads, kv_heads)} * (heads / kv_heads), wide = whole_panels(head_size);
    const int64_t floats = 2 * segment * wide + rows * (segment + head_size) + 2 * partial_floats(rows, wide) +
                           19 * segment + 6 * (wide + 2) + 4 * rows;
    return (floats + 15) / 16 * 16;
}

// Partial results that a step may keep, one for each (query, head, segment): enough for a lone query at `positions`.
static inline int64_t attend_partials(int heads, int64_t positions) {
    const int64_t lone = heads * ((positions + segment - 1) / segment);
    return lone > 16384 ? lone : 16384;
}

// Of all threads, and those partial results.
static inline int64_t attend_floats(int heads, int kv_heads, int head_size, int threads, int64_t positions) {
    return threads * attend_thread_floats(heads, kv_heads, head_size) +
           partial_floats(attend_partials(heads, positions), whole_panels(head_size));
}

}  // namespace tokenworks::cpu
