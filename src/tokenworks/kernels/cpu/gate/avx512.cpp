#include "gate.h"

namespace tokenworks::cpu {
void gate_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
