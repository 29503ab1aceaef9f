#include "experts.h"

#include <algorithm>

namespace tokenworks::cpu {
namespace {

constexpr int64_t line = 64;

int64_t to_line(int64_t bytes) { return (bytes + line - 1) / line * line; }

// Where a step's rows lie in the scratch memory.
struct Scratch {
    int64_t pairs, blocks;
    uint8_t* data;
    int64_t size = 0;

    template <typename T>
    T* take(int64_t count) {
        T* taken = reinterpret_cast<T*>(data + size);
        size += to_line(count * static_cast<int64_t>(sizeof(T)));
        return taken;
    }
};

struct Buffers {
    int32_t *starts, *fill, *token, *place;
    float *inner, *made;
    Prepared prepared;
    int64_t bytes;
};

// The sorting is short and each thread does it for itself, which saves a barrier.
Buffers buffers(const Mixture& mixture, int64_t rows, int part, int parts, uint8_t* data) {
    const ExpertsShape& shape = mixture.shape;
    const int64_t pairs = rows * shape.top_k, blocks = (std::max(shape.width, shape.inner) + 31) / 32;
    const int64_t experts = static_cast<int64_t>(mixture.outwards.size());
    Scratch scratch{pairs, blocks, data};
    Buffers found{};
    for (int p = 0; p < parts; p++) {
        int32_t* mine[] = {scratch.take<int32_t>(experts + 1), scratch.take<int32_t>(experts),
                           scratch.take<int32_t>(pairs), scratch.take<int32_t>(pairs)};
        if (p == part) found = {mine[0], mine[1], mine[2], mine[3], nullptr, nullptr, {}, 0};
    }
    found.inner = scratch.take<float>(pairs * shape.inner * (mixture.gated ? 2 : 1));
    found.made = scratch.take<float>(pairs * shape.width);
    found.prepared.codes = scratch.take<int8_t>(pairs * blocks * 32);
    found.prepared.facts = scratch.take<BlockFacts>(pairs * blocks);
    found.prepared.bfloats = scratch.take<uint16_t>(pairs * blocks * 32);
    found.prepared.floats = scratch.take<float>(pairs * blocks * 32);
    found.bytes = scratch.size;
    return found;
}

// Which token each sorted row is of, where each expert's rows begin, and where each pair's row is (-1: not here).
void sort(const ExpertsArgs& args, const Buffers& to) {
    const Mixture& mixture = *args.mixture;
    const int top_k = mixture.shape.top_k, experts = static_cast<int>(mixture.outwards.size());
    std::fill(to.starts, to.starts + experts + 1, 0);
    for (int r = 0; r < args.rows; r++)
        for (int j = 0; j < top_k; j++) {
            const int32_t expert = mixture.place[static_cast<size_t>(args.routes.row(r)[j])];
            to.place[r * top_k + j] = expert;
            if (expert >= 0) to.starts[expert + 1]++;
        }
    for (int e = 0; e < experts; e++) {
        to.starts[e + 1] += to.starts[e];
        to.fill[e] = to.starts[e];
    }
    for (int r = 0; r < args.rows; r++)
        for (int j = 0; j < top_k; j++) {
            int32_t& place = to.place[r * top_k + j];
            if (place < 0) continue;
            place = to.fill[place]++;
            to.token[place] = r;
        }
}

void count(const ExpertsArgs& args) {
    for (int r = 0; r < args.rows; r++)
        for (int j = 0; j < args.mixture->shape.top_k; j++)
            args.mixture->uses[static_cast<size_t>(args.routes.row(r)[j])]++;
}

}  // namespace

int64_t experts_scratch(const Mixture& mixture, int64_t rows, int threads) {
    return buffers(mixture, rows, 0, threads, nullptr).bytes;
}

void run_experts(const ExpertsArgs& args, Share& share, const Kernels& kernels) {
    const Mixture& mixture = *args.mixture;
    const ExpertsShape& shape = mixture.shape;
    const Buffers at = buffers(mixture, args.rows, share.part, share.parts, args.scratch);
    const int experts = static_cast<int>(mixture.outwards.size());
    sort(args, at);
    if (share.part == 0) count(args);
    if (mixture.store) mixture.store->fetch(mixture.layer, at.starts, share);
    const int rows = at.starts[experts];

    // One token's experts all have the same input.
    const bool one_row = args.rows == 1;
    const int32_t one[] = {0, 1};
    kernels.prepare_groups({one_row ? 1 : experts, one_row ? one : at.starts, one_row ? nullptr : at.token, args.x,
                            shape.width, mixture.forms_in, at.prepared},
                           share);
    share.barrier();
    const int64_t inner_stride = int64_t{shape.inner} * (mixture.gated ? 2 : 1);
    const Columns inner{at.inner, inner_stride}, made{at.made, shape.width};
    kernels.linear_groups({experts, at.starts, one_row, inner, at.prepared, mixture.inwards.data(), mixture.gated ? 2 : 1},
                          share);
    share.barrier();
    if (mixture.gated)
        kernels.gate({rows, inner, inner, {at.inner + shape.inner, inner_stride}, shape.inner, shape.activation,
                      shape.limit, shape.offset},
                     share);
    else
        kernels.activate({rows, inner, inner, shape.inner, shape.activation}, share);
    kernels.prepare_groups({experts, at.starts, nullptr, inner, shape.inner, mixture.forms_out,
                            at.prepared},
                           share);
    share.barrier();
    kernels.linear_groups({experts, at.starts, false, made, at.prepared, mixture.outwards.data(), 1}, share);
    share.barrier();
    kernels.combine({args.rows, args.output, made, shape.width, at.place,
                     {args.routes.data + shape.top_k, args.routes.stride}, shape.top_k},
                    share);
}

}  // namespace tokenworks::cpu
