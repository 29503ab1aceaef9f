#include "gate.h"

namespace tokenworks::cpu {
void gate_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
