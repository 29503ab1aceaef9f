#include "adapt.h"

namespace tokenworks::cpu {
void adapt_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
