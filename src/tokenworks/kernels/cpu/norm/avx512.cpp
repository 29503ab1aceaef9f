#include "norm.h"

namespace tokenworks::cpu {
void norm_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
