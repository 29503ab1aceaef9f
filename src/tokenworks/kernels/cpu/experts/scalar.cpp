#include "route.h"

namespace tokenworks::cpu {
void experts_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
