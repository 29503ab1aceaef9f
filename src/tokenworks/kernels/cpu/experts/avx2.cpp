#include "route.h"

namespace tokenworks::cpu {
void experts_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
