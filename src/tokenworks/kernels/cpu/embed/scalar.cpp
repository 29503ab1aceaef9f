// One copy for every instruction set: the work is dequantise_row, a row of memory per token.
#include "../kernels.h"

namespace tokenworks::cpu {
namespace {

void embed(const EmbedArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    for (int r = range.begin; r < range.end; r++) {
        float* out = args.output.row(r);
        dequantise_row(*args.table, args.index && args.index[r] < args.limit ? args.index[r] : 0, out);
        if (args.scale != 1.0f)
            for (int i = 0; i < args.width; i++) out[i] *= args.scale;
    }
}

}  // namespace

void embed_scalar(Kernels& table) { table.embed = embed; }

}  // namespace tokenworks::cpu
