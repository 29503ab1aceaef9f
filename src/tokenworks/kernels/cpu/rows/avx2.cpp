#include "rows.h"

namespace tokenworks::cpu {
void rows_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
