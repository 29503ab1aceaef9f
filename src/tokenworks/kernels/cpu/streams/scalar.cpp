#include "streams.h"

namespace tokenworks::cpu {
void streams_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
