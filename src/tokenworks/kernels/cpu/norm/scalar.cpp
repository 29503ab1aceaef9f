#include "norm.h"

namespace tokenworks::cpu {
void norm_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
