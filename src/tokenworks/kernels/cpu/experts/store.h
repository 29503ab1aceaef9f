// Experts of a model that is larger than memory: in a file of packed weights, which is mapped. Those used most (kept.h)
// are kept in memory of their own, which the system cannot take back as it takes the file's cache; what a step needs
// besides is read into the place of the least used, past that cache. Where that is impossible, matrices are used as they
// are mapped, and the system decides. Both have the same bytes.
#pragma once

#include <atomic>
#include <optional>
#include <vector>

#include "../linear/packed.h"
#include "../memory.h"
#include "../team.h"
#include "kept.h"

namespace tokenworks::cpu {

class ExpertStore {
  public:
    // `file` is mapped from `descriptor`, of which a copy is made; -1: there is none.
    ExpertStore(const uint8_t* file, int descriptor);
    ~ExpertStore();
    ExpertStore(const ExpertStore&) = delete;
    ExpertStore& operator=(const ExpertStore&) = delete;

    // The matrices of each expert of one layer, in the mapping, from now on moved by the store. Returns the layer's number.
    int add(const std::vector<std::vector<PackedMatrix*>>& experts);

    // Between steps: from now on keeps at most so many bytes, and no more than when it was called first.
    void keep(int64_t bytes);

    // Called by every thread, with where the rows of each of the layer's experts begin; a barrier later the matrices of
    // those that have rows are where they point to.
    void fetch(int layer, const int32_t* starts, Share& share);

    int64_t bytes() const;       // of all experts
    int64_t kept_bytes() const;  // memory that is taken
    // Of experts that had rows so far: their bytes, and how many of these were in memory then.
    int64_t needed_bytes() const { return needed_bytes_; }
    int64_t found_bytes() const { return found_bytes_; }

  private:
    struct Piece {
        PackedMatrix* matrix;
        int64_t offset, in_slot;  // in the file, in its expert's slot
    };
    struct Expert {
        size_t pool;
        int number;  // in its pool
        size_t first_piece, end_piece;
    };
    struct Pool {
        int64_t slot_bytes;
        std::vector<size_t> experts;
        int layers = 0;
        std::optional<KeptExperts> kept;  // until keep is called: none
        Region memory;
    };

    void choose(std::pair<size_t, size_t> layer, const int32_t* starts);
    void leave(const Expert& expert);
    void read(const Piece& piece);
    void look_up(const Piece& piece);

    const uint8_t* file_;
    int descriptor_, direct_ = -1;  // the latter reads past the file's cache; -1: impossible
    std::vector<Piece> pieces_;
    std::vector<Expert> experts_;
    std::vector<Pool> pools_;
    std::vector<std::pair<size_t, size_t>> layers_;  // first and end of experts_
    // Of the layer under way.
    std::vector<std::vector<int>> needed_;  // by pool
    std::vector<size_t> readings_, mapped_;  // in pieces_
    std::atomic<int64_t> needed_bytes_{0}, found_bytes_{0};
};

}  // namespace tokenworks::cpu
