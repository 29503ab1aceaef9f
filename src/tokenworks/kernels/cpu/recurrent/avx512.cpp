#include "fill.h"

namespace tokenworks::cpu {
void recurrent_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
