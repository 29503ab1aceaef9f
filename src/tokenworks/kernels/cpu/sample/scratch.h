// The memory that sampling needs: shared with the executor, which owns it.
#pragma once

#include <cstdint>

namespace tokenworks::cpu {

// A row's candidates: their logits and ids, and the ones that are being put in order. 64-byte steps.
static inline int64_t sample_thread_bytes(int64_t vocabulary) { return (4 * 4 * vocabulary + 63) / 64 * 64 + 1024; }

}  // namespace tokenworks::cpu
