#include "adapt.h"

namespace tokenworks::cpu {
void adapt_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
