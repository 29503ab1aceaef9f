// Low-rank adapters (LoRA, arXiv 2106.09685): of the rows whose sequence has an adapter, a product's output grows by
// scale * up (down x). Rows of one adapter are multiplied together, so that its weights are read once for all of them
// (arXiv 2310.18547); a row's own arithmetic is the same whoever else is there.
#pragma once

#include <vector>

#include "../ahead.h"
#include "../kernels.h"
#include "../linear/linear.h"

namespace tokenworks::cpu {

// Beside a quantised weight an adapter is rounded to int8, with a scale for each output feature, and multiplied with the
// codes of the weight's own input; beside others it stays as it is stored, and so does the input.
enum class Element { float32, float16, bfloat16, int8 };

constexpr int adapter_panel = 16;  // output features
constexpr int most_rank = 256;

// A matrix [outputs, inputs] in panels of 16 outputs; what lacks in the last panel is zeros. A panel is [inputs][16], or
// of int8 [inputs / 4][16][4], rounded up, and then [16] float32 scales.
struct Panels {
    const uint8_t* data;
    int outputs, inputs;
    Element element;

    int count() const { return (outputs + adapter_panel - 1) / adapter_panel; }
    int64_t code_bytes() const { return (int64_t{inputs} + 3) / 4 * 4 * adapter_panel; }  // of int8
    int64_t panel_bytes() const {
        if (element == Element::int8) return code_bytes() + adapter_panel * int64_t{sizeof(float)};
        return int64_t{inputs} * adapter_panel * (element == Element::float32 ? 4 : 2);
    }
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
    const TilePlace* places;  // of those rows, in `prepared`
    int groups;
    Columns x, output;
    Prepared prepared;           // x, where the product's weights are quantised
    const LowRank* const* maps;  // [slots, segments]; null where an adapter leaves a weight as it is
    const int64_t* columns;      // [segments] where each one's outputs begin
    int segments;
    float* inner;                // [starts[groups], segments, inner_width]: scale * down x
    int inner_width;             // a multiple of 16, no less than any rank

    const LowRank* map_of(int group, int segment) const { return maps[int64_t{slots[group]} * segments + segment]; }
};

namespace {

// Calls body(map, group, segment, from, to) for this thread's share of the work with one side of the maps. A piece of
// work is a panel with at most `tile_rows` of the group's rows; pieces go by tiles of rows, then by panels.
template <typename Body>
static inline __attribute__((always_inline)) void each_stretch(const AdaptArgs& args, const Share& share,
                                                               Panels LowRank::*side, int tile_rows, const Body& body) {
    const auto tiles_of = [&](int g) { return (args.starts[g + 1] - args.starts[g] + tile_rows - 1) / tile_rows; };
    int total = 0;
    for (int g = 0; g < args.groups; g++)
        for (int s = 0; s < args.segments; s++)
            if (const LowRank* map = args.map_of(g, s)) total += (map->*side).count() * tiles_of(g);
    const Range range = share.rows(total);
    int begin = 0;  // the number of this group's and segment's first piece
    for (int g = 0; g < args.groups && begin < range.end; g++)
        for (int s = 0; s < args.segments && begin < range.end; s++) {
            const LowRank* map = args.map_of(g, s);
            if (!map) continue;
            const int count = (map->*side).count() * tiles_of(g);
            const int from = range.begin > begin ? range.begin - begin : 0;
            const int to = range.end - begin < count ? range.end - begin : count;
            if (from < to) body(*map, g, s, from, to);
            begin += count;
        }
}

}  // namespace

// The panels that a thread multiplies next: those of `up` of the product under way, then those of `down` of the product
// behind it.
class AdaptersAhead final : public Ahead {
  public:
    void add(const AdaptArgs& args, Panels LowRank::*side, int tile_rows, const Share& share);

  private:
    Piece next() override { return at_ < pieces_.size() ? pieces_[at_++] : Piece{nullptr, 0}; }
    std::vector<Piece> pieces_;
    size_t at_ = 0;
};

}  // namespace tokenworks::cpu
