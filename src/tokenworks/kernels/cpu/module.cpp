// The Python face of the backend: kernels/cpu/backend.py is its only caller.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "executor/executor.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tokenworks::cpu {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatTable = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WritableTable = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Raw = std::tuple<std::string, std::string, int64_t, int64_t, Bytes, std::optional<Floats>>;

RawWeight raw(const Raw& weight) {
    const auto& [name, format, out_features, in_features, data, row_scales] = weight;
    if (row_scales && row_scales->size() != static_cast<size_t>(out_features))
        throw std::invalid_argument("weight '" + name + "': one scale for each row is needed");
    return {name, format, out_features, in_features, data.data(), data.size(), row_scales ? row_scales->data() : nullptr};
}

// What kernels/cpu/packed_file.py keeps of a PackedMatrix: layout, output and input features, scale, scaled rows.
using Facts = std::tuple<std::string, int64_t, int64_t, float, bool>;

PackedMatrix matrix(const Facts& facts) { return std::apply(matrix_of, facts); }

using OwnedBytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

nb::capsule owner_of(Region&& region) {
    return nb::capsule(new Region(std::move(region)), [](void* p) noexcept { delete static_cast<Region*>(p); });
}

auto pack(Executor& executor, const std::vector<Raw>& weights) {
    std::vector<RawWeight> raws;
    for (const Raw& weight : weights) raws.push_back(raw(weight));
    Packed packed;
    {
        nb::gil_scoped_release unlocked;
        packed = executor.pack(raws);
    }
    const nb::capsule owner = owner_of(std::move(packed.memory));
    std::vector<std::pair<Facts, OwnedBytes>> result;
    for (const PackedMatrix& m : packed.matrices)
        result.push_back({{row_of(m.layout).name, m.out_features, m.in_features, m.scale, m.row_scaled},
                          {m.data, {static_cast<size_t>(m.bytes())}, owner}});
    return result;
}

auto checksums(Executor& executor, const std::vector<Bytes>& arrays) {
    std::vector<std::pair<const uint8_t*, size_t>> pieces;
    for (const Bytes& array : arrays) pieces.emplace_back(array.data(), array.size());
    nb::gil_scoped_release unlocked;
    return executor.checksums(pieces);
}

OwnedBytes copy(Executor& executor, Bytes data) {
    Region region;
    {
        nb::gil_scoped_release unlocked;
        region = executor.copy(data.data(), data.size());
    }
    uint8_t* const copied = region.data();
    return {copied, {data.size()}, owner_of(std::move(region))};
}

int use(Executor& executor, const Facts& facts, Bytes data) {
    PackedMatrix used = matrix(facts);
    if (data.size() != static_cast<size_t>(used.bytes()) || reinterpret_cast<uintptr_t>(data.data()) % 64)
        throw std::invalid_argument("a packed matrix of the wrong size or at an odd place");
    used.data = const_cast<uint8_t*>(data.data());  // which nobody writes
    return executor.use(used);
}

// A new numpy array that owns its numbers.
template <typename T, typename... Sizes>
auto array(T*& data, Sizes... sizes) {
    data = new T[(static_cast<size_t>(sizes) * ... * 1)];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<sizeof...(Sizes)>>(data, {static_cast<size_t>(sizes)...}, owner);
}

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

void run(Executor& executor, Ints tokens, Ints positions, Ints row_starts, IntTable block_tables, Ints logit_rows,
         std::optional<FloatTable> features, std::optional<Ints> feature_rows, std::optional<IntTable> axes,
         std::optional<Ints> ends, std::optional<FloatTable> inputs, std::optional<Ints> window_starts,
         std::optional<Ints> state_begin, std::optional<Ints> state_rows, std::optional<Ints> state_slots,
         std::optional<Ints> adapters, int first_part, int end_part, int threads) {
    require(row_starts.size() >= 1, "row_starts has no entries");
    const size_t sequences = row_starts.size() - 1;
    require(positions.size() == tokens.size(), "tokens and positions differ in length");
    require(block_tables.shape(0) == sequences, "block_tables needs a row for each sequence");
    require(features.has_value() == feature_rows.has_value() &&
                (!features || features->shape(0) == feature_rows->size()),
            "features need a row each");
    require(!axes || axes->shape(1) == tokens.size(), "axes need a place for each token");
    require(!ends || ends->size() == tokens.size(), "ends needs an entry for each token");
    require(!inputs || inputs->shape(0) == tokens.size(), "inputs need a row for each token");
    require(!window_starts || window_starts->size() >= 1, "window_starts has no entries");
    require(!state_begin || (state_begin->size() == sequences && state_rows && state_slots &&
                             state_rows->size() == state_slots->size()),
            "states need a beginning for each sequence and a slot for each row");
    require(!adapters || adapters->size() == sequences, "adapters needs an entry for each sequence");
    Step step{static_cast<int>(tokens.size()),
                    static_cast<int>(sequences),
                    static_cast<int>(logit_rows.size()),
                    tokens.data(),
                    positions.data(),
                    row_starts.data(),
                    block_tables.data(),
                    logit_rows.data(),
                    static_cast<int>(block_tables.shape(1))};
    if (features) {
        step.features = features->data();
        step.feature_rows = feature_rows->data();
        step.feature_count = static_cast<int>(features->shape(0));
        step.feature_width = static_cast<int>(features->shape(1));
    }
    if (axes) {
        step.axes = axes->data();
        step.axis_count = static_cast<int>(axes->shape(0));
    }
    if (ends) step.ends = ends->data();
    if (inputs) {
        step.inputs = inputs->data();
        step.input_width = static_cast<int>(inputs->shape(1));
    }
    if (state_begin) {
        step.state_begin = state_begin->data();
        step.state_rows = state_rows->data();
        step.state_slots = state_slots->data();
        step.state_writings = static_cast<int>(state_rows->size());
    }
    if (window_starts) {
        step.window_starts = window_starts->data();
        step.windows = static_cast<int>(window_starts->size()) - 1;
    }
    if (adapters) step.adapters = adapters->data();
    nb::gil_scoped_release unlocked;
    executor.run(step, first_part, end_part, threads);
}

auto sample(Executor& executor, WritableTable logits, Floats temperature, Ints top_k, Floats top_p, Floats min_p,
            Floats uniform) {
    const size_t rows = logits.shape(0);
    require(temperature.size() == rows && top_k.size() == rows && top_p.size() == rows && min_p.size() == rows &&
                uniform.size() == rows,
            "each sampling option needs one value for each row of logits");
    int32_t* token;
    auto result = array(token, rows);
    const SampleArgs args{static_cast<int>(rows), static_cast<int>(logits.shape(1)), logits.data(),
                          temperature.data(),     top_k.data(),                     top_p.data(),
                          min_p.data(),           uniform.data(),                   token,
                          nullptr};
    {
        nb::gil_scoped_release unlocked;
        executor.sample(args);
    }
    return result;
}

auto logprobs(Executor& executor, FloatTable logits, Ints chosen, int top) {
    const size_t rows = logits.shape(0);
    require(chosen.size() == rows, "one chosen token for each row of logits");
    require(top >= 0 && static_cast<size_t>(top) <= logits.shape(1), "top is larger than the vocabulary");
    for (size_t r = 0; r < rows; r++)
        require(chosen.data()[r] >= 0 && static_cast<size_t>(chosen.data()[r]) < logits.shape(1),
                "a chosen token is outside the vocabulary");
    float *values, *top_values;
    int32_t *ranks, *top_tokens;
    auto result = std::make_tuple(array(values, rows), array(ranks, rows), array(top_tokens, rows, top),
                                  array(top_values, rows, top));
    const LogprobsArgs args{static_cast<int>(rows), static_cast<int>(logits.shape(1)), logits.data(), chosen.data(), top,
                            values,                 ranks,                            top_tokens,    top_values};
    {
        nb::gil_scoped_release unlocked;
        executor.logprobs(args);
    }
    return result;
}

}  // namespace
}  // namespace tokenworks::cpu

NB_MODULE(_cpu, m) {
    using namespace tokenworks::cpu;
    nb::enum_<Rows>(m, "Rows")
        .value("tokens", Rows::tokens)
        .value("selected", Rows::selected)
        .value("sequences", Rows::sequences)
        .value("merged", Rows::merged);
    nb::enum_<Index>(m, "Index")
        .value("token", Index::token)
        .value("known_token", Index::known_token)
        .value("position", Index::position)
        .value("axis", Index::axis)
        .value("zero", Index::zero);
    nb::enum_<Activation>(m, "Activation")
        .value("silu", Activation::silu)
        .value("gelu_tanh", Activation::gelu_tanh)
        .value("gelu", Activation::gelu)
        .value("gelu_quick", Activation::gelu_quick)
        .value("relu2", Activation::relu2)
        .value("sigmoid", Activation::sigmoid)
        .value("none", Activation::none);

    nb::enum_<CacheType>(m, "CacheType")
        .value("float32", CacheType::float32)
        .value("float16", CacheType::float16)
        .value("bfloat16", CacheType::bfloat16)
        .value("int8", CacheType::int8);

    m.def("isa", [] { return kernels().name; }, "The instruction set in use: scalar, avx2, avx512, amx or neon.");
    m.def("isa_trouble", [] { return kernels().trouble; }, "A better set that is there but left unused, and why.");

    m.def("checksum", [](Bytes data) { return checksum(data.data(), data.size()); },
          nb::call_guard<nb::gil_scoped_release>(), "As Executor.checksums, by the calling thread alone.");
    m.def("packed_bytes", [](const Facts& facts) { return matrix(facts).bytes(); }, "Of a matrix's data.");

    nb::class_<KeptExperts>(m, "KeptExperts")
        .def(nb::init<int, int, double>())
        .def("choose",
             [](KeptExperts& kept, const std::vector<int>& needed) {
                 std::vector<std::tuple<int, int, int>> moves;
                 for (const auto& [expert, slot, earlier] : kept.choose(needed)) moves.emplace_back(expert, slot, earlier);
                 return moves;
             })
        .def("limit", &KeptExperts::limit)
        .def("slot", &KeptExperts::slot)
        .def_prop_ro("kept", &KeptExperts::kept);

    nb::class_<Executor>(m, "Executor")
        .def(nb::init<int>(), "threads"_a)
        .def("pack", &pack)
        .def("checksums", &checksums)
        .def("copy", &copy)
        .def("use", &use, nb::keep_alive<1, 3>())
        .def("vector", [](Executor& executor, const Raw& weight) { return executor.vector(raw(weight)); })
        .def("allocate",
             [](Executor& executor, int64_t arena_floats, int64_t prepared_rows, int64_t prepared_width, int blocks,
                int block_tokens, CacheType type, int merged, const std::vector<std::tuple<int, int, int>>& layers,
                int state_slots, const std::vector<int64_t>& states) {
                 const CacheShape cache{blocks, block_tokens, type, layers, state_slots, states};
                 executor.allocate(arena_floats, prepared_rows, prepared_width, merged, cache);
             },
             "arena_floats"_a, "prepared_rows"_a, "prepared_width"_a, "blocks"_a, "block_tokens"_a, "cache_type"_a,
             "merged"_a, "layers"_a, "state_slots"_a, "states"_a)
        .def("watch", &Executor::watch)
        .def_prop_ro("finite", &Executor::finite)
        .def("barrier", &Executor::barrier)
        .def("pause", &Executor::pause)
        .def("input", &Executor::input)
        .def("inject", &Executor::inject)
        .def("merge", &Executor::merge)
        .def("embed", &Executor::embed)
        .def("rmsnorm", &Executor::rmsnorm)
        .def("layernorm", &Executor::layernorm)
        .def("prepare", &Executor::prepare)
        .def("linear",
             [](Executor& executor, Rows rows, Place output, Place x, std::optional<Place> residual,
                const std::vector<std::pair<int, int>>& segments) {
                 executor.linear(rows, output, x, residual ? &*residual : nullptr, segments);
             },
             "rows"_a, "output"_a, "x"_a, "residual"_a.none(), "segments"_a)
        .def("prepare_heads",
             [](Executor& executor, Rows rows, Place output, Place x, int heads, int kept, int inputs, int outputs,
                unsigned forms) {
                 executor.prepare_heads(rows, output, x, {heads, kept, inputs, outputs}, forms);
             })
        .def("linear_heads", &Executor::linear_heads)
        .def("rope", &Executor::rope)
        .def("store", &Executor::store)
        .def("attend", &Executor::attend)
        .def("short_convolution", &Executor::short_convolution)
        .def("selective_scan", &Executor::selective_scan)
        .def("delta_rule", &Executor::delta_rule)
        .def("gate", &Executor::gate)
        .def("activate", &Executor::activate)
        .def("add", &Executor::add)
        .def("scale", &Executor::scale)
        .def("scale_rows", &Executor::scale_rows)
        .def("multiply", &Executor::multiply)
        .def("mix_streams", &Executor::mix_streams)
        .def("match_magnitude", &Executor::match_magnitude)
        .def("sparsify", &Executor::sparsify)
        .def("route",
             [](Executor& executor, Rows rows, Place output, Place x, int experts, int top_k, bool sigmoid,
                bool normalise, float scale, int bias, int expert_scales, int groups, int kept_groups, int group_best) {
                 executor.route(rows, output, x,
                                {0, {}, {}, experts, top_k, sigmoid, normalise, scale, nullptr, nullptr, groups,
                                 kept_groups, group_best},
                                bias, expert_scales);
             },
             "rows"_a, "output"_a, "x"_a, "experts"_a, "top_k"_a, "sigmoid"_a, "normalise"_a, "scale"_a, "bias"_a,
             "expert_scales"_a, "groups"_a, "kept_groups"_a, "group_best"_a)
        .def("experts",
             [](Executor& executor, Rows rows, Place output, Place x, Place routes, int routed, int top_k, int width,
                int inner, Activation activation, float limit, float offset,
                const std::vector<std::tuple<int, int, int, int, int, int, int>>& experts) {
                 std::vector<ExpertNumbers> numbers;
                 for (const auto& [number, gate, up, down, gate_bias, up_bias, down_bias] : experts)
                     numbers.push_back({number, gate, up, down, gate_bias, up_bias, down_bias});
                 executor.experts(rows, output, x, routes, {top_k, width, inner, activation, limit, offset}, routed,
                                  numbers);
             },
             "rows"_a, "output"_a, "x"_a, "routes"_a, "routed"_a, "top_k"_a, "width"_a, "inner"_a, "activation"_a,
             "limit"_a, "offset"_a, "experts"_a)
        .def("expert_uses", &Executor::expert_uses)
        .def("in_file", [](Executor& executor, Bytes file, int descriptor) { executor.in_file(file.data(), descriptor); },
             nb::keep_alive<1, 2>())
        .def("keep_experts",
             [](Executor& executor, int64_t bytes) {
                 if (ExpertStore* store = executor.expert_store()) store->keep(bytes);
             })
        .def("expert_reads",
             [](Executor& executor) {
                 const ExpertStore* store = executor.expert_store();
                 return store ? std::make_pair(store->needed_bytes(), store->found_bytes()) : std::make_pair(int64_t{0}, int64_t{0});
             })
        .def_prop_ro("expert_bytes",
                     [](Executor& executor) { return executor.expert_store() ? executor.expert_store()->bytes() : 0; })
        .def_prop_ro("kept_expert_bytes",
                     [](Executor& executor) { return executor.expert_store() ? executor.expert_store()->kept_bytes() : 0; })
        .def("softcap", &Executor::softcap)
        .def("select_rows", &Executor::select_rows)
        .def("pool", &Executor::pool)
        .def("run", &run, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(),
             nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(),
             nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg())
        .def("load_adapter",
             [](Executor& executor, int slot, const std::vector<std::tuple<int, Raw, Raw, float>>& adaptations) {
                 std::vector<RawAdaptation> raws;
                 for (const auto& [matrix, down, up, scale] : adaptations)
                     raws.push_back({matrix, raw(down), raw(up), scale});
                 nb::gil_scoped_release unlocked;
                 executor.load_adapter(slot, raws);
             })
        .def("drop_adapter", &Executor::drop_adapter)
        .def_prop_ro("adapter_bytes", &Executor::adapter_bytes)
        .def("values",
             // Rows of a buffer as they are after a run; a view.
             [](nb::handle self, Place place, size_t rows, size_t width) {
                 float* data = nb::cast<Executor&>(self).arena() + place.first;
                 return nb::ndarray<nb::numpy, float, nb::ndim<2>>(data, {rows, width}, self, {place.second, 1});
             })
        .def("sample", &sample)
        .def("logprobs", &logprobs)
        .def("input_form", &Executor::input_form)
        .def_prop_ro("weight_bytes", &Executor::weight_bytes)
        .def_prop_ro("cache_bytes", &Executor::cache_bytes);
}
