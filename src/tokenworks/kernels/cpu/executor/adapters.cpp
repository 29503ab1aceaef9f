// The executor's adapters: loaded into slots, dropped from them, and what of a step's rows goes through which.
#include <algorithm>
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

void pack_panels(const uint8_t* from, const Panels& to) {
    uint8_t* out = const_cast<uint8_t*>(to.data);
    to.element == Element::float32 ? fill_panels<float>(from, to, out) : fill_panels<uint16_t>(from, to, out);
}

Panels shape_of(const RawWeight& weight) {
    const Element element = element_of(weight.format);
    const Panels panels{nullptr, static_cast<int>(weight.out_features), static_cast<int>(weight.in_features), element};
    const int64_t elements = weight.out_features * weight.in_features;
    if (static_cast<int64_t>(weight.bytes) != elements * (element == Element::float32 ? 4 : 2))
        throw std::invalid_argument("weight '" + weight.name + "': its bytes do not fit its shape");
    return panels;
}

}  // namespace

void Executor::load_adapter(int slot, const std::vector<RawAdaptation>& adaptations) {
    if (slot < 0) throw std::invalid_argument("there is no such slot");
    Adapter adapter;
    int64_t bytes = 0;
    int rank = 0;
    for (const RawAdaptation& each : adaptations) {
        const LowRank map{shape_of(each.down), shape_of(each.up), each.scale};
        const PackedMatrix& weight = matrices_.at(static_cast<size_t>(each.matrix));
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
    team_.run([&](Share& share) {
        for (size_t i; (i = static_cast<size_t>(share.take())) < adaptations.size();) {
            pack_panels(adaptations[i].down.data, adapter.maps[i].down);
            pack_panels(adaptations[i].up.data, adapter.maps[i].up);
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
        to.slots.clear();
        to.starts.assign(1, 0);
        for (const auto& [slot, adapter] : adapters_) {
            for (int r = 0; r < count; r++)
                if (slot_of(r) == slot) to.rows.push_back(r);
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

bool Executor::adapts(Rows rows, const Product& product, AdaptArgs& args) const {
    const AdaptedRows& adapted = rows == Rows::tokens ? adapted_tokens_ : adapted_selected_;
    if (!product.adapted || adapted.slots.empty() || (rows != Rows::tokens && rows != Rows::selected)) return false;
    args = {adapted.rows.data(),
            adapted.starts.data(),
            adapted.slots.data(),
            static_cast<int>(adapted.slots.size()),
            product.x,
            product.output,
            product.maps.data(),
            product.columns.data(),
            static_cast<int>(product.matrices.size()),
            reinterpret_cast<float*>(adapter_inner_.data()),
            adapter_inner_width_};
    return true;
}

}  // namespace tokenworks::cpu
