#include "attend.h"

namespace tokenworks::cpu {
void attend_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
