// The executor's weights: packed for the kernels, or widened to float32.
#include "executor.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace tokenworks::cpu {
namespace {

std::invalid_argument named(const RawWeight& weight, const std::string& what) {
    return std::invalid_argument("weight '" + weight.name + "': " + what);
}

// Throws std::invalid_argument, with the weight's name, if it cannot be read.
FileFormat checked_format(const RawWeight& weight) {
    try {
        const FileFormat format = file_format(weight.format);
        const size_t expected = file_bytes(format, weight.in_features) * static_cast<size_t>(weight.out_features);
        if (weight.bytes != expected)
            throw std::invalid_argument("it has " + std::to_string(weight.bytes) +
                                        " bytes where its shape and format need " + std::to_string(expected));
        return format;
    } catch (const std::invalid_argument& error) {
        throw named(weight, error.what());
    }
}

PackedMatrix shape_of(const RawWeight& weight, FileFormat format) {
    // Kernels read E4M3's bits as another float's, where NaN is a number.
    if (format == FileFormat::f8_e4m3 &&
        std::any_of(weight.data, weight.data + weight.bytes, [](uint8_t bits) { return (bits & 0x7f) == 0x7f; }))
        throw named(weight, "it holds NaN");
    try {
        return packed_shape(format, weight.out_features, weight.in_features, weight.row_scales);
    } catch (const std::invalid_argument& error) {
        throw named(weight, error.what());
    }
}

}  // namespace

Packed Executor::pack(const std::vector<RawWeight>& weights) {
    struct Task {
        size_t weight;
        int begin, end;  // panels
    };
    std::vector<FileFormat> formats;
    std::vector<PackedMatrix> shapes;
    std::vector<Task> tasks;
    int64_t bytes = 0;
    for (const RawWeight& weight : weights) {
        formats.push_back(checked_format(weight));
        shapes.push_back(shape_of(weight, formats.back()));
        bytes += shapes.back().bytes();
    }
    Region region(static_cast<size_t>(bytes), true);
    uint8_t* data = region.data();
    for (size_t w = 0; w < weights.size(); w++) {
        shapes[w].data = data;
        data += shapes[w].bytes();
        for (int p = 0; p < shapes[w].panels(); p += 16) tasks.push_back({w, p, std::min(p + 16, shapes[w].panels())});
    }
    team_.run(team_.size(), [&](Share& share) {
        for (size_t t; (t = static_cast<size_t>(share.take())) < tasks.size();) {
            const Task& task = tasks[t];
            for (int p = task.begin; p < task.end; p++)
                pack_panel(formats[task.weight], weights[task.weight].data, weights[task.weight].row_scales,
                           shapes[task.weight], p);
        }
    });
    return {std::move(shapes), std::move(region)};
}

std::vector<uint64_t> Executor::checksums(const std::vector<std::pair<const uint8_t*, size_t>>& pieces) {
    std::vector<uint64_t> sums(pieces.size());
    team_.run(team_.size(), [&](Share& share) {
        for (size_t i; (i = static_cast<size_t>(share.take())) < pieces.size();)
            sums[i] = checksum(pieces[i].first, pieces[i].second);
    });
    return sums;
}

Region Executor::copy(const uint8_t* data, size_t bytes) {
    constexpr size_t piece = size_t{2} << 20;
    Region region(bytes, true);
    team_.run(team_.size(), [&](Share& share) {
        for (size_t at; (at = static_cast<size_t>(share.take()) * piece) < bytes;)
            std::memcpy(region.data() + at, data + at, std::min(piece, bytes - at));
    });
    return region;
}

int Executor::use(const PackedMatrix& matrix) {
    matrices_.push_back(matrix);
    weight_bytes_ += matrix.bytes();
    return static_cast<int>(matrices_.size()) - 1;
}

int Executor::vector(const RawWeight& weight) {
    const FileFormat format = checked_format(weight);
    const int64_t elements = weight.out_features * weight.in_features;
    std::vector<float> values(static_cast<size_t>(elements));
    decode(format, weight.data, elements, values.data());
    vectors_.push_back(std::move(values));
    weight_bytes_ += elements * static_cast<int64_t>(sizeof(float));
    return static_cast<int>(vectors_.size()) - 1;
}

}  // namespace tokenworks::cpu
