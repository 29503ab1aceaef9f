#include <algorithm>

#include "linear.h"

namespace tokenworks::cpu {
namespace {

struct Tile {
    int begin, height, log2_height;
};

// The tile that begins at `row`, of `rows`.
inline Tile tile_at(int row, int rows) {
    if (rows - row >= 16) return {row, 16, 4};
    int log2_height = 3;
    while (rows - row < tile_heights[log2_height]) log2_height--;
    return {row, tile_heights[log2_height], log2_height};
}

// The tile that holds `row`.
Tile tile_of(int row, int rows) {
    const int full = rows / 16 * 16;
    Tile tile = tile_at(row < full ? row / 16 * 16 : full, rows);
    while (row >= tile.begin + tile.height) tile = tile_at(tile.begin + tile.height, rows);
    return tile;
}

void run_panel(const LinearArgs& args, const Segment& segment, int panel, Range rows, int64_t ahead_bytes,
               const LinearKernels& kernels) {
    const PackedMatrix& weight = *segment.weight;
    const int64_t k = weight.in_features, blocks = (k + 31) / 32, first = int64_t{panel} * panel_width;
    const int columns = static_cast<int>(std::min<int64_t>(panel_width, weight.out_features - first));
    const uint8_t* data = weight.panel(panel);
    const float* bias = segment.bias ? segment.bias + first : nullptr;
    const int64_t column = segment.column + first;
    const int layout = static_cast<int>(weight.layout);
    alignas(64) float sums[tiles_at_once * 16 * panel_width];
    for (int row = rows.begin; row < rows.end;) {
        const Tile tile = tile_at(row, rows.end);
        const Prepared x = from_row(args.x, row, k);
        const bool many = tile.height == 16 && kernels.many[layout];
        const int count = many ? std::min((rows.end - row) / 16, tiles_at_once) : 1, height = tile.height * count;
        const Columns output{args.output.row(row) + column, args.output.stride};
        const float* residual = args.residual ? args.residual + row * args.residual_stride + column : nullptr;
        // A cache line of each row, which finish would wait for.
        for (int r = 0; r < height; r++) {
            __builtin_prefetch(output.row(r), 1, 2);
            if (residual) __builtin_prefetch(residual + r * args.residual_stride, 0, 2);
        }
        if (many) {
            kernels.many[layout](weight, data, x, count, sums);
        } else {
            Fetch fetch{nullptr, 0};
            if (ahead_bytes > 0) {
                const Ahead::Piece piece = args.ahead->take(ahead_bytes);
                fetch = {piece.data, (piece.bytes + blocks - 1) / blocks};
                ahead_bytes -= piece.bytes;
            }
            kernels.tiles[layout][tile.log2_height](weight, data, x, fetch, sums);
        }
        kernels.finish({sums,
                        weight.scale,
                        weight.row_scales(panel),
                        height,
                        columns,
                        output,
                        bias,
                        residual,
                        args.residual_stride});
        row += height;
    }
}

// A task multiplies a stretch of panels with a stretch of rows. Both fit into a core's second-level cache, so that each is
// read from further away once in a task; both are as long as that allows, but so that there are tasks enough to share out
// evenly.
struct Tasks {
    int panels, rows;         // of a task
    int panel_count, count;   // stretches of panels; tasks
};

int64_t input_bytes(Form form, int64_t k) {
    switch (form) {
        case code_form: return k / 32 * (32 + static_cast<int64_t>(sizeof(BlockFacts)));
        case bfloat_form: return k * 2;
        case float_form: break;
    }
    return k * 4;
}

Tasks tasks_of(const PackedMatrix& weight, Form form, int rows, int parts) {
    constexpr int64_t cache_bytes = 192 * 1024;  // for either
    constexpr int row_step = 4 * 16;  // so that kernels of many tiles have some
    const int64_t rows_at_once =
        std::max<int64_t>(1, cache_bytes / input_bytes(form, weight.in_features) / row_step) * row_step;
    const int row_count = static_cast<int>((rows + rows_at_once - 1) / rows_at_once);
    const int64_t by_bytes = cache_bytes / weight.panel_bytes, by_tasks = int64_t{weight.panels()} * row_count / (4 * parts);
    const int panels = static_cast<int>(std::max<int64_t>(1, std::min(by_bytes, by_tasks)));
    const int panel_count = (weight.panels() + panels - 1) / panels;
    return {panels, static_cast<int>(rows_at_once), panel_count, panel_count * row_count};
}

// A row of x, `tile` being the tile that it belongs to.
void prepare_row(const float* x, int64_t width, int row, const Tile& tile, const Prepared& to, unsigned forms,
                 const LinearKernels& kernels) {
    const int64_t blocks = (width + 31) / 32;
    const int in_tile = row - tile.begin;
    if (forms & code_form)
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t at = tile.begin * blocks + b * tile.height + in_tile;
            kernels.quantise_block(x + b * 32, to.codes + at * 32, to.facts + at);
        }
    if (forms & bfloat_form)
        for (int64_t b = 0; b < blocks; b++) {
            uint16_t* out = to.bfloats + (tile.begin * blocks + b * tile.height + in_tile) * 32;
            if (b * 32 + 32 <= width) {
                kernels.round_block(x + b * 32, out);
                continue;
            }
            float last[32] = {};
            std::copy(x + b * 32, x + width, last);
            kernels.round_block(last, out);
        }
    if (forms & float_form) {
        float* out = to.floats + tile.begin * width + in_tile;
        for (int64_t i = 0; i < width; i++) out[i * tile.height] = x[i];
    }
}

// Bytes to be read ahead with each panel, so that all are by the product's end.
int64_t ahead_of_a_panel(const LinearArgs& args, const Share& share) {
    if (!args.ahead) return 0;
    int64_t panels = 0;
    for (int s = 0; s < args.segment_count; s++) panels += args.segments[s].weight->panels();
    return args.ahead->bytes() * share.parts / panels + 64;
}

// Runs those tasks of a product that this thread takes. `task` is the last number taken, first_task that of the
// product's first.
void run_tasks(const LinearArgs& args, Share& share, const LinearKernels& kernels, int& task, int& first_task) {
    const int64_t ahead_bytes = ahead_of_a_panel(args, share);
    for (int s = 0; s < args.segment_count; s++) {
        const Segment& segment = args.segments[s];
        LinearArgs of = args;
        if (args.apart) of.x = from_row(args.x, int64_t{s} * args.rows, segment.weight->in_features);
        const Tasks tasks = tasks_of(*segment.weight, input_form(*segment.weight, kernels), args.rows, share.parts);
        for (; task < first_task + tasks.count; task = share.take()) {
            const int now = task - first_task, first = now % tasks.panel_count * tasks.panels;
            const int row = now / tasks.panel_count * tasks.rows;
            const int end = std::min(first + tasks.panels, segment.weight->panels());
            for (int p = first; p < end; p++)
                run_panel(of, segment, p, {row, std::min(row + tasks.rows, args.rows)}, ahead_bytes, kernels);
        }
        first_task += tasks.count;
    }
}

}  // namespace

TilePlace place_of(int row, int rows) {
    const Tile tile = tile_of(row, rows);
    return {tile.begin, tile.height, row - tile.begin};
}

void run_prepare(const PrepareArgs& args, Share& share, const LinearKernels& kernels) {
    const Range range = share.rows(args.rows);
    for (int row = range.begin; row < range.end; row++)
        prepare_row(args.x.row(row), args.width, row, tile_of(row, args.rows), args.prepared, args.forms, kernels);
}

void run_linear(const LinearArgs& args, Share& share, const LinearKernels& kernels) {
    if (args.rows == 0) return;
    int task = share.take(), first_task = 0;
    run_tasks(args, share, kernels, task, first_task);
}

void run_prepare_groups(const PrepareGroupsArgs& args, Share& share, const LinearKernels& kernels) {
    const Range range = share.rows(args.starts[args.groups]);
    for (int g = 0, row = range.begin; row < range.end; g++) {
        const int begin = args.starts[g], rows = args.starts[g + 1] - begin;
        const Prepared to = from_row(args.prepared, begin, args.width);
        for (; row < std::min(begin + rows, range.end); row++)
            prepare_row(args.x.row(args.of ? args.of[row] : row), args.width, row - begin, tile_of(row - begin, rows), to,
                        args.forms, kernels);
    }
}

void run_linear_groups(const LinearGroupsArgs& args, Share& share, const LinearKernels& kernels) {
    int task = share.take(), first_task = 0;
    for (int g = 0; g < args.groups; g++) {
        const int begin = args.starts[g], rows = args.starts[g + 1] - begin;
        if (rows == 0) continue;
        const Segment* segments = args.segments + int64_t{g} * args.segment_count;
        const Prepared x = args.one_row ? args.x : from_row(args.x, begin, segments->weight->in_features);
        const LinearArgs product{rows,    {args.output.row(begin), args.output.stride}, nullptr, 0, x, segments,
                                 args.segment_count};
        run_tasks(product, share, kernels, task, first_task);
    }
}

}  // namespace tokenworks::cpu
