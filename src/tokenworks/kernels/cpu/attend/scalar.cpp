#include "attend.h"

namespace tokenworks::cpu {
void attend_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
