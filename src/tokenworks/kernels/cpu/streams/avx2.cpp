#include "streams.h"

namespace tokenworks::cpu {
void streams_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
