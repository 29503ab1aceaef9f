#include "adapt.h"

namespace tokenworks::cpu {
void adapt_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
