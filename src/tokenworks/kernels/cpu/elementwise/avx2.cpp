#include "elementwise.h"

namespace tokenworks::cpu {
void elementwise_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
