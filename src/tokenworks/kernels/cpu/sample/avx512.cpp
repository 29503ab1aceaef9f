#include "logprobs.h"

namespace tokenworks::cpu {
void sample_avx512(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
