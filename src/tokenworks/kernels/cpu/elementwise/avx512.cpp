#include "elementwise.h"

namespace tokenworks::cpu {
void elementwise_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
