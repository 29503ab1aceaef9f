#include "fill.h"

namespace tokenworks::cpu {
void recurrent_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
