// Low-rank adapters (LoRA, arXiv 2106.09685): of the rows whose sequence has an adapter, a product's output grows by
// scale * up (down x). Rows of one adapter are multiplied together, so that its weights are read once for all of them
// (arXiv 2310.18547); a row's own arithmetic is the same whoever else is there.
#pragma once

#include "../kernels.h"

namespace tokenworks::cpu {

enum class Element { float32, float16, bfloat16 };

constexpr int adapter_panel = 16;  // output features
constexpr int most_rank = 256;

// A matrix [outputs, inputs] as [panels][inputs][16 outputs]; what lacks in the last panel is zeros.
struct Panels {
    const uint8_t* data;
    int outputs, inputs;
    Element element;

    int count() const { return (outputs + adapter_panel - 1) / adapter_panel; }
    int64_t panel_bytes() const { return int64_t{inputs} * adapter_panel * (element == Element::float32 ? 4 : 2); }
    int64_t bytes() const { return count() * panel_bytes(); }
};

// An adapter's share of one weight.
struct LowRank {
    Panels down, up;  // [rank, in_features], [out_features, rank]
    float scale;
};

struct AdaptArgs {
    // Rows in groups of one adapter each: group g has rows[starts[g] .. starts[g + 1]] and the adapter of slots[g].
    const int32_t *rows, *starts, *slots;
    int groups;
    Columns x, output;
    const LowRank* const* maps;  // [slots, segments]; null where an adapter leaves a weight as it is
    const int64_t* columns;      // [segments] where each one's outputs begin
    int segments;
    float* inner;                // [starts[groups], segments, inner_width]: scale * down x
    int inner_width;             // a multiple of 16, no less than any rank
};

}  // namespace tokenworks::cpu
