#include "norm.h"

namespace tokenworks::cpu {
void norm_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
