#include "fill.h"

namespace tokenworks::cpu {
void recurrent_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
