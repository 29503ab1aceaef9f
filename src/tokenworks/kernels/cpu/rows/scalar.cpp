#include "rows.h"

namespace tokenworks::cpu {
void rows_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
