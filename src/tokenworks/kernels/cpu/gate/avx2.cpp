#include "gate.h"

namespace tokenworks::cpu {
void gate_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
