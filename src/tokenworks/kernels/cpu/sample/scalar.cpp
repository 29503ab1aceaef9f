#include "logprobs.h"

namespace tokenworks::cpu {
void sample_scalar(Kernels& table) { fill(table); }
}  // namespace tokenworks::cpu
