#include "attend.h"

namespace tokenworks::cpu {
void attend_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
