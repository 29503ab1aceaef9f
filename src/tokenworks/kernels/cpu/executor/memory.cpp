// The executor's memory: the arena of activations, the cache's blocks, the slots of states.
#include "executor.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "../attend/scratch.h"

namespace tokenworks::cpu {
namespace {

constexpr int64_t line = 64;

int64_t to_line(int64_t bytes) { return (bytes + line - 1) / line * line; }

}  // namespace

void Executor::allocate(int64_t arena_floats, int64_t prepared_rows, int64_t prepared_width, int merged,
                        const CacheShape& cache) {
    merged_ = merged;
    arena_ = Region(static_cast<size_t>(arena_floats) * sizeof(float), true);
    step_rows_ = prepared_rows;
    const int64_t blocks = prepared_rows * ((prepared_width + 31) / 32);
    const int64_t codes = blocks * 32, facts = to_line(blocks * static_cast<int64_t>(sizeof(BlockFacts)));
    const int64_t bfloats = codes * 2, floats = codes * 4;
    prepared_ = Region(static_cast<size_t>(codes + facts + bfloats + floats), true);
    uint8_t* data = prepared_.data();
    prepared_input_ = {reinterpret_cast<int8_t*>(data), reinterpret_cast<BlockFacts*>(data + codes),
                       reinterpret_cast<uint16_t*>(data + codes + facts),
                       reinterpret_cast<float*>(data + codes + facts + bfloats)};

    // Block after block, and in each all layers: a block is one piece, so a cache in use touches no more than it fills.
    cache_shape_ = cache;
    for (auto [kv_heads, head_size, latent] : cache.layers) {
        layer_offsets_.push_back(block_bytes_);
        const int largest = latent ? std::max(latent, head_size - latent) : head_size;
        if (cache.type == CacheType::int8 && largest > largest_byte_head)
            throw std::invalid_argument("a cache of int8 takes heads of at most " + std::to_string(largest_byte_head) +
                                        " elements, and these have " + std::to_string(largest));
        block_bytes_ += (latent ? 1 : 2) *
                        to_line(tokenworks::cpu::cache_bytes(cache.type, kv_heads, head_size, latent, cache.block_tokens));
    }
    cache_ = Region(static_cast<size_t>(block_bytes_ * cache.blocks), false);
    for (const int64_t floats : cache.states) {
        state_offsets_.push_back(slot_floats_);
        slot_floats_ += to_line(floats * int64_t{sizeof(float)}) / int64_t{sizeof(float)};
    }
    states_ = Region(static_cast<size_t>(slot_floats_ * cache.state_slots) * sizeof(float), false);
}

Cache Executor::cache_of(int layer) const {
    if (layer < 0) return {nullptr, nullptr, 0, 0, CacheType::float32};
    const auto index = static_cast<size_t>(layer);
    const int64_t end = index + 1 < layer_offsets_.size() ? layer_offsets_[index + 1] : block_bytes_;
    char* k = reinterpret_cast<char*>(cache_.data()) + layer_offsets_[index];
    const int latent = std::get<2>(cache_shape_.layers[index]);
    return {k, latent ? k : k + (end - layer_offsets_[index]) / 2, block_bytes_, cache_shape_.block_tokens,
            cache_shape_.type};
}

}  // namespace tokenworks::cpu
