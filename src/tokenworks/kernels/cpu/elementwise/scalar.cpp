#include "elementwise.h"

namespace tokenworks::cpu {
void elementwise_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
