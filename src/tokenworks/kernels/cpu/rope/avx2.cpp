#include "rope.h"

namespace tokenworks::cpu {
void rope_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
