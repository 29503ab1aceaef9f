#include "store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <string>

namespace tokenworks::cpu {
namespace {

constexpr double half_life = 32;  // steps

// What reading past the file's cache asks of addresses, sizes and offsets; the file's matrices begin on such pages.
constexpr int64_t page = 4096;

int64_t to_page(int64_t bytes) { return (bytes + page - 1) / page * page; }

// How much of a mapped range the system has in memory, in whole pages; with `fetch` it is told to read the rest.
int64_t resident_bytes(const uint8_t* data, int64_t bytes, bool fetch) {
    int64_t found = 0;
#if defined(__linux__)
    static const int64_t system_page = sysconf(_SC_PAGESIZE);
    constexpr int64_t at_once = 4096;  // pages
    unsigned char resident[at_once];
    const auto address = reinterpret_cast<uintptr_t>(data), begin = address / system_page * system_page;
    const int64_t end = static_cast<int64_t>(address - begin) + bytes;
    for (int64_t at = 0; at < end; at += at_once * system_page) {
        const int64_t length = std::min(at_once * system_page, end - at);
        const int64_t pages = (length + system_page - 1) / system_page;
        void* from = reinterpret_cast<void*>(begin + at);
        if (mincore(from, static_cast<size_t>(length), resident) != 0) return 0;
        const int64_t here = std::count_if(resident, resident + pages, [](unsigned char p) { return p & 1; });
        if (fetch && here < pages) madvise(from, static_cast<size_t>(length), MADV_WILLNEED);
        found += here * system_page;
    }
#else
    (void)data, (void)bytes, (void)fetch;
#endif
    return found;
}

}  // namespace

ExpertStore::ExpertStore(const uint8_t* file, int descriptor) : file_(file), descriptor_(dup(descriptor)) {
#ifdef O_DIRECT
    if (descriptor_ >= 0)
        direct_ = open(("/proc/self/fd/" + std::to_string(descriptor_)).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
#endif
}

ExpertStore::~ExpertStore() {
    for (const int descriptor : {descriptor_, direct_})
        if (descriptor >= 0) close(descriptor);
}

int ExpertStore::add(const std::vector<std::vector<PackedMatrix*>>& experts) {
    const size_t first = experts_.size();
    std::vector<char> in_pool;
    for (const std::vector<PackedMatrix*>& matrices : experts) {
        Expert expert{0, 0, pieces_.size(), pieces_.size() + matrices.size()};
        int64_t bytes = 0;
        for (PackedMatrix* matrix : matrices) {
            pieces_.push_back({matrix, matrix->data - file_, bytes});
            bytes += to_page(matrix->bytes());
        }
        const auto pool = std::find_if(pools_.begin(), pools_.end(), [&](const Pool& p) { return p.slot_bytes == bytes; });
        expert.pool = static_cast<size_t>(pool - pools_.begin());
        if (pool == pools_.end()) pools_.emplace_back().slot_bytes = bytes;
        expert.number = static_cast<int>(pools_[expert.pool].experts.size());
        pools_[expert.pool].experts.push_back(experts_.size());
        in_pool.resize(pools_.size());
        if (!std::exchange(in_pool[expert.pool], 1)) pools_[expert.pool].layers++;
        experts_.push_back(expert);
    }
    needed_.resize(pools_.size());
    layers_.emplace_back(first, experts_.size());
    return static_cast<int>(layers_.size()) - 1;
}

void ExpertStore::keep(int64_t bytes) {
    const int64_t all = this->bytes();
    for (Pool& pool : pools_) {
        const auto experts = static_cast<int64_t>(pool.experts.size());
        const int slots = static_cast<int>(std::clamp(bytes, int64_t{0}, all) * experts / all);
        if (!pool.kept) {
            try {
                pool.memory = Region(static_cast<size_t>(slots * pool.slot_bytes), true);
                pool.kept.emplace(static_cast<int>(experts), slots, half_life * pool.layers);
            } catch (const std::bad_alloc&) {
                pool.kept.emplace(static_cast<int>(experts), 0, 1.0);
            }
            continue;
        }
        const int64_t before = pool.kept->kept();
        for (const int gone : pool.kept->limit(slots)) leave(experts_[pool.experts[static_cast<size_t>(gone)]]);
        const int64_t after = pool.kept->kept();
        if (after < before)
            madvise(pool.memory.data() + to_page(after * pool.slot_bytes),
                    static_cast<size_t>((before - after) * pool.slot_bytes), MADV_DONTNEED);
    }
}

void ExpertStore::fetch(int layer, const int32_t* starts, Share& share) {
    if (share.part == 0) choose(layers_[static_cast<size_t>(layer)], starts);
    share.barrier();
    const size_t readings = readings_.size(), tasks = readings + mapped_.size();
    for (size_t i; (i = static_cast<size_t>(share.take())) < tasks;)
        if (i < readings)
            read(pieces_[readings_[i]]);
        else
            look_up(pieces_[mapped_[i - readings]]);
}

int64_t ExpertStore::bytes() const {
    int64_t sum = 0;
    for (const Pool& pool : pools_) sum += static_cast<int64_t>(pool.experts.size()) * pool.slot_bytes;
    return sum;
}

int64_t ExpertStore::kept_bytes() const {
    int64_t sum = 0;
    for (const Pool& pool : pools_) sum += pool.kept ? pool.kept->kept() * pool.slot_bytes : 0;
    return sum;
}

// Decides where the matrices of the experts that have rows will be.
void ExpertStore::choose(std::pair<size_t, size_t> layer, const int32_t* starts) {
    readings_.clear();
    mapped_.clear();
    for (std::vector<int>& needed : needed_) needed.clear();
    for (size_t e = layer.first; e < layer.second; e++, starts++)
        if (starts[0] < starts[1]) needed_[experts_[e].pool].push_back(experts_[e].number);
    for (size_t p = 0; p < pools_.size(); p++) {
        if (needed_[p].empty()) continue;
        Pool& pool = pools_[p];
        int64_t found = static_cast<int64_t>(needed_[p].size());
        needed_bytes_ += found * pool.slot_bytes;
        if (pool.kept)
            for (const KeptExperts::Move& move : pool.kept->choose(needed_[p])) {
                if (move.earlier >= 0) leave(experts_[pool.experts[static_cast<size_t>(move.earlier)]]);
                const Expert& expert = experts_[pool.experts[static_cast<size_t>(move.expert)]];
                for (size_t i = expert.first_piece; i < expert.end_piece; i++) {
                    pieces_[i].matrix->data = pool.memory.data() + move.slot * pool.slot_bytes + pieces_[i].in_slot;
                    readings_.push_back(i);
                }
                found--;
            }
        for (const int number : needed_[p]) {
            if (pool.kept && pool.kept->slot(number) >= 0) continue;
            const Expert& expert = experts_[pool.experts[static_cast<size_t>(number)]];
            for (size_t i = expert.first_piece; i < expert.end_piece; i++) mapped_.push_back(i);
            found--;
        }
        found_bytes_ += found * pool.slot_bytes;
    }
}

// To where it is mapped.
void ExpertStore::leave(const Expert& expert) {
    for (size_t i = expert.first_piece; i < expert.end_piece; i++)
        pieces_[i].matrix->data = const_cast<uint8_t*>(file_) + pieces_[i].offset;
}

// Fills a matrix's part of a slot. What cannot be read is left where it is mapped.
void ExpertStore::read(const Piece& piece) {
    const int64_t bytes = piece.matrix->bytes();
    const bool cached = resident_bytes(file_ + piece.offset, bytes, false) >= bytes;
    if (cached) found_bytes_ += to_page(bytes);
    const int from = cached || direct_ < 0 ? descriptor_ : direct_;
    int64_t done = 0;
    while (done < bytes) {
        const ssize_t got =
            pread(from, piece.matrix->data + done, static_cast<size_t>(to_page(bytes) - done), piece.offset + done);
        if (got <= 0) break;
        done += got;
    }
    if (done < bytes) piece.matrix->data = const_cast<uint8_t*>(file_) + piece.offset;
#ifdef POSIX_FADV_DONTNEED
    else if (from == descriptor_) posix_fadvise(descriptor_, piece.offset, to_page(bytes), POSIX_FADV_DONTNEED);
#endif
}

// A matrix that is used where it is mapped: has what is not in memory read, all at once.
void ExpertStore::look_up(const Piece& piece) {
    const int64_t bytes = piece.matrix->bytes();
    found_bytes_ += std::min(resident_bytes(piece.matrix->data, bytes, true), to_page(bytes));
}

}  // namespace tokenworks::cpu
