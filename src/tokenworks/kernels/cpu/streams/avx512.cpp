#include "streams.h"

namespace tokenworks::cpu {
void streams_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
