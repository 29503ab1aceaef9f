// The executor's adapters: loaded into slots, dropped from them, and what of a step's rows goes through which.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "executor.h"
#include "../half.h"

namespace tokenworks::cpu {
namespace {

Element element_of(const std::string& format) {
    if (format == "F32") return Element::float32;
    if (format == "F16") return Element::float16;
    if (format == "BF16") return Element::bfloat16;
    throw std::invalid_argument("an adapter of format " + format + " cannot be run");
}

template <typename T>
void fill_panels(const uint8_t* from, const Panels& to, uint8_t* out) {
    const T* rows = reinterpret_cast<const T*>(from);
    T* packed = reinterpret_cast<T*>(out);
    for (int p = 0; p < to.count(); p++)
        for (int k = 0; k < to.inputs; k++)
            for (int lane = 0; lane < adapter_panel; lane++) {
                const int row = p * adapter_panel + lane;
                *packed++ = row < to.outputs ? rows[int64_t{row} * to.inputs + k] : T{};
            }
}

void fill_int8_panels(const RawWeight& from, const Panels& to, uint8_t* out) {
    std::vector<float> values(static_cast<size_t>(from.out_features * from.in_features));
    decode(file_format(from.format), from.data, static_cast<int64_t>(values.size()), values.data());
    for (int row = 0; row < to.outputs; row++) {
        uint8_t* panel = out + row / adapter_panel * to.panel_bytes();
        const int lane = row % adapter_panel;
        const float* of_row = values.data() + int64_t{row} * to.inputs;
        float largest = 0.0f;
        for (int k = 0; k < to.inputs; k++) largest = std::max(largest, std::abs(of_row[k]));
        reinterpret_cast<float*>(panel + to.code_bytes())[lane] = largest / 127.0f;
        const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
        for (int k = 0; k < to.inputs; k++)
            panel[(k / 4 * adapter_panel + lane) * 4 + k % 4] =
                static_cast<uint8_t>(static_cast<int8_t>(std::lrint(of_row[k] * inverse)));
    }
}

void pack_panels(const RawWeight& from, const Panels& to) {
    uint8_t* out = const_cast<uint8_t*>(to.data);
    switch (to.element) {
        case Element::float32: return fill_panels<float>(from.data, to, out);
        case Element::int8: return fill_int8_panels(from, to, out);
        default: return fill_panels<uint16_t>(from.data, to, out);
    }
}

Panels shape_of(const RawWeight& weight, bool quantised) {
    const Element stored = element_of(weight.format);
    const int64_t elements = weight.out_features * weight.in_features;
    if (static_cast<int64_t>(weight.bytes) != elements * (stored == Element::float32 ? 4 : 2))
        throw std::invalid_argument("weight '" + weight.name + "': its bytes do not fit its shape");
    return {nullptr, static_cast<int>(weight.out_features), static_cast<int>(weight.in_features),
            quantised ? Element::int8 : stored};
}

}  // namespace

void Executor::load_adapter(int slot, const std::vector<RawAdaptation>& adaptations) {
    if (slot < 0) throw std::invalid_argument("there is no such slot");
    Adapter adapter;
    int64_t bytes = 0;
    int rank = 0;
    for (const RawAdaptation& each : adaptations) {
        const PackedMatrix& weight = matrices_.at(static_cast<size_t>(each.matrix));
        const LowRank map{shape_of(each.down, weight.quantised()), shape_of(each.up, weight.quantised()), each.scale};
        if (map.down.inputs != weight.in_features || map.up.outputs != weight.out_features ||
            map.up.inputs != map.down.outputs || map.up.inputs < 1 || map.up.inputs > most_rank)
            throw std::invalid_argument("weight '" + each.down.name + "': its shape does not fit what it adapts");
        rank = std::max(rank, map.up.inputs);
        bytes += map.down.bytes() + map.up.bytes();
        adapter.maps.push_back(map);
    }
    adapter.region = Region(static_cast<size_t>(bytes), true);
    uint8_t* data = adapter.region.data();
    for (LowRank& map : adapter.maps)
        for (Panels* side : {&map.down, &map.up}) {
            side->data = data;
            data += side->bytes();
        }
    team_.run(team_.size(), [&](Share& share) {
        for (size_t i; (i = static_cast<size_t>(share.take())) < adaptations.size();) {
            pack_panels(adaptations[i].down, adapter.maps[i].down);
            pack_panels(adaptations[i].up, adapter.maps[i].up);
        }
    });
    drop_adapter(slot);
    const int width = (rank + adapter_panel - 1) / adapter_panel * adapter_panel;
    size_t most_segments = 1;
    for (Product& product : products_) {
        most_segments = std::max(most_segments, product.matrices.size());
        product.maps.resize(std::max(product.maps.size(), static_cast<size_t>(slot + 1) * product.matrices.size()));
        for (size_t i = 0; i < adaptations.size(); i++)
            for (size_t s = 0; s < product.matrices.size(); s++)
                if (product.matrices[s] == adaptations[i].matrix) {
                    product.maps[static_cast<size_t>(slot) * product.matrices.size() + s] = &adapter.maps[i];
                    product.adapted++;
                }
    }
    adapters_[slot] = std::move(adapter);  // the maps stay where they are
    adapter_inner_width_ = std::max(adapter_inner_width_, width);
    const size_t inner = static_cast<size_t>(step_rows_) * most_segments * static_cast<size_t>(adapter_inner_width_);
    if (inner * sizeof(float) > adapter_inner_.size()) adapter_inner_ = Region(inner * sizeof(float), false);
}

void Executor::drop_adapter(int slot) {
    if (!adapters_.erase(slot)) return;
    for (Product& product : products_) {
        const size_t begin = static_cast<size_t>(slot) * product.matrices.size();
        for (size_t s = 0; s < product.matrices.size(); s++) {
            product.adapted -= product.maps[begin + s] != nullptr;
            product.maps[begin + s] = nullptr;
        }
    }
}

int64_t Executor::adapter_bytes() const {
    int64_t bytes = 0;
    for (const auto& [slot, adapter] : adapters_) bytes += static_cast<int64_t>(adapter.region.size());
    return bytes;
}

void Executor::group_rows(const Step& step) {
    const auto group = [&](AdaptedRows& to, int count, auto slot_of) {
        to.rows.clear();
        to.places.clear();
        to.slots.clear();
        to.starts.assign(1, 0);
        for (const auto& [slot, adapter] : adapters_) {
            for (int r = 0; r < count; r++)
                if (slot_of(r) == slot) {
                    to.rows.push_back(r);
                    to.places.push_back(place_of(r, count));
                }
            if (static_cast<size_t>(to.starts.back()) == to.rows.size()) continue;
            to.starts.push_back(static_cast<int32_t>(to.rows.size()));
            to.slots.push_back(slot);
        }
    };
    row_slots_.resize(static_cast<size_t>(step.tokens));
    for (int s = 0; s < step.sequences; s++)
        std::fill(row_slots_.begin() + step.row_starts[s], row_slots_.begin() + step.row_starts[s + 1],
                  step.adapters[s]);
    group(adapted_tokens_, step.tokens, [&](int r) { return row_slots_[static_cast<size_t>(r)]; });
    group(adapted_selected_, step.selected,
          [&](int r) { return row_slots_[static_cast<size_t>(step.logit_rows[r])]; });
}

bool Executor::adapts(const Product& product, AdaptArgs& args) const {
    const AdaptedRows& adapted = product.rows == Rows::tokens ? adapted_tokens_ : adapted_selected_;
    if (!product.adapted || adapted.slots.empty() || (product.rows != Rows::tokens && product.rows != Rows::selected))
        return false;
    args = {adapted.rows.data(),
            adapted.starts.data(),
            adapted.slots.data(),
            adapted.places.data(),
            static_cast<int>(adapted.slots.size()),
            product.x,
            product.output,
            prepared_input_,
            product.maps.data(),
            product.columns.data(),
            static_cast<int>(product.matrices.size()),
            reinterpret_cast<float*>(adapter_inner_.data()),
            adapter_inner_width_};
    return true;
}

void Executor::run_adapted(const LinearArgs& args, size_t product, Share& share) const {
    AdaptArgs now, then;
    AdaptersAhead ahead;
    const bool adapts_now = adapts(products_[product], now);
    if (adapts_now) {
        kernels_.adapt_down(now, share);
        ahead.add(now, &LowRank::up, kernels_.adapt_rows, share);
    }
    if (product + 1 < products_.size() && adapts(products_[product + 1], then))
        ahead.add(then, &LowRank::down, kernels_.adapt_rows, share);
    LinearArgs with = args;
    with.ahead = &ahead;
    kernels_.linear(with, share);
    if (!adapts_now) return;
    share.barrier();
    kernels_.adapt_up(now, share);
}

void AdaptersAhead::add(const AdaptArgs& args, Panels LowRank::*side, int tile_rows, const Share& share) {
    each_stretch(args, share, side, tile_rows, [&](const LowRank& map, int, int, int from, int to) {
        const Panels& panels = map.*side;
        const int count = panels.count();
        const bool one_tile = from / count == (to - 1) / count;
        const int first = one_tile ? from % count : 0, end = one_tile ? (to - 1) % count + 1 : count;
        pieces_.push_back({panels.data + first * panels.panel_bytes(), (end - first) * panels.panel_bytes()});
        bytes_ += pieces_.back().bytes;
    });
}

}  // namespace tokenworks::cpu
