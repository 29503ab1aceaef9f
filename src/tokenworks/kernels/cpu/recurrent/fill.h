// short_convolution, selective_scan, delta_rule: what carries a state from token to token.
#pragma once

#include "convolution.h"
#include "delta.h"
#include "scan.h"

namespace tokenworks::cpu {
namespace {

void fill(Kernels& table) {
    table.short_convolution = short_convolution;
    table.selective_scan = selective_scan;
    table.delta_rule = delta_rule;
}

}  // namespace
}  // namespace tokenworks::cpu
