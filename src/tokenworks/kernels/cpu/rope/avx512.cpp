#include "rope.h"

namespace tokenworks::cpu {
void rope_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
