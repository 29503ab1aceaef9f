// One copy for every instruction set: the work is moving memory.
#include <cstring>

#include "../kernels.h"

namespace tokenworks::cpu {
namespace {

size_t floats(int count) { return static_cast<size_t>(count) * sizeof(float); }

void input(const InputArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++)
        std::memcpy(args.output.row(r), args.inputs + int64_t{r} * args.width, floats(args.width));
}

void inject(const InjectArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int f = 0; f < args.feature_count; f++) {
        const int row = args.feature_rows[f];
        if (row < range.begin || row >= range.end) continue;
        const float* given = args.features + f * args.feature_stride + args.offset;
        float* x = args.x.row(row);
        if (args.replace) std::memcpy(x, given, floats(args.width));
        for (int i = 0; !args.replace && i < args.width; i++) x[i] += given[i];
    }
}

void merge(const MergeArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        float* out = args.output.row(r);
        const int64_t first = int64_t{r} * args.count;
        if (!args.mean) {
            for (int i = 0; i < args.count; i++)
                std::memcpy(out + int64_t{i} * args.width, args.x.row(first + i), floats(args.width));
            continue;
        }
        std::memcpy(out, args.x.row(first), floats(args.width));
        for (int i = 1; i < args.count; i++) {
            const float* x = args.x.row(first + i);
            for (int c = 0; c < args.width; c++) out[c] += x[c];
        }
        for (int c = 0; c < args.width; c++) out[c] /= static_cast<float>(args.count);
    }
}

}  // namespace

void features_scalar(Kernels& table) {
    table.input = input;
    table.inject = inject;
    table.merge = merge;
}

}  // namespace tokenworks::cpu
