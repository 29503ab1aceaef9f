#include "logprobs.h"

namespace tokenworks::cpu {
void sample_avx2(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
