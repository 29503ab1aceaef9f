#include "route.h"

namespace tokenworks::cpu {
void experts_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
