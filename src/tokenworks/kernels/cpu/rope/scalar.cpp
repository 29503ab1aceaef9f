#include "rope.h"

namespace tokenworks::cpu {
void rope_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
