// sample: a token for each row of logits, as SampleBatch in kernels/backend.py defines it.
//
// The definition wants the vocabulary in falling order, but a draw needs only the place where the running sum passes a
// mark. So tokens are counted into buckets by their distance from the best one, whole buckets are stepped over, and only
// the bucket in which a mark lies is sorted.
#pragma once

#include <cstdlib>

#include "../functions.h"
#include "../kernels.h"
#include "scratch.h"

namespace tokenworks::cpu {
namespace {

// Logits of a register's worth of places; places beyond the end are -infinity.
INLINE Floats load_logits(const float* p, int left) {
    if (left >= lanes) return load(p);
    Floats v = all(-__builtin_inff());
    __builtin_memcpy(&v, p, static_cast<size_t>(left) * sizeof(float));
    return v;
}

INLINE float best_logit(const float* logits, int n) {
    Floats high = all(-__builtin_inff());
    for (int at = 0; at < n; at += lanes) high = larger(load_logits(logits + at, n - at), high);
    return largest(high);
}

// The largest logit's lowest index; 0 if all are NaN.
int best_token(const float* logits, int n) {
    const Floats best = all(best_logit(logits, n));
    for (int at = 0; at < n; at += lanes)
        if (const unsigned equal = bits(load_logits(logits + at, n - at) == best)) {
            const int id = at + __builtin_ctz(equal);
            return id < n ? id : 0;
        }
    return 0;
}

struct Entry {
    float logit;
    int32_t id;
};

int falling(const void* a, const void* b) {
    const Entry &x = *static_cast<const Entry*>(a), &y = *static_cast<const Entry*>(b);
    if (x.logit != y.logit) return x.logit > y.logit ? -1 : 1;
    return x.id < y.id ? -1 : 1;
}

constexpr int buckets = 1024;
// Candidates are collected within the first of these distances, and within the next if a draw reaches beyond them.
// Weights beyond the last are 0.
constexpr float far = 87.0f;
constexpr float reaches[] = {8.0f, 16.0f, 32.0f, far};

// The tokens of a row that are within `reach` of the best one. The weight of a token is e^-distance.
struct Candidates {
    float best, temperature, reach;
    float* logits;
    int32_t* ids;
    Entry* sorted;
    int count;
    double total;  // of the weights of the whole row
    int counts[buckets];
    double masses[buckets];

    Floats distances(Floats logits_) const { return (best - logits_) / temperature; }
    Ints bucket_numbers(Floats distances_) const {
        const Ints number = __builtin_convertvector(distances_ * (buckets / reach), Ints);
        return number < buckets ? number : buckets - 1 - Ints{};
    }
    float least_weight(int bucket) const {
        return exponential(all(-static_cast<float>(bucket + 1) * reach / buckets))[0];
    }
};

void collect(Candidates& found, const float* logits, int n) {
    found.count = 0;
    found.total = 0.0;
    for (int begin = 0; begin < n;) {
        // The sum of a run is float32, of the runs float64.
        const int end = begin + 64 * lanes < n ? begin + 64 * lanes : n;
        Floats total{};
        for (int at = begin; at < end; at += lanes) {
            const Floats distance = found.distances(load_logits(logits + at, end - at));
            total = total + exponential(-distance);
            for (unsigned left = bits(distance < all(found.reach)); left; left &= left - 1) {
                const int id = at + __builtin_ctz(left);
                found.logits[found.count] = logits[id];
                found.ids[found.count++] = id;
            }
        }
        found.total += sum(total);
        begin = end;
    }
    __builtin_memset(found.counts, 0, sizeof found.counts);
    __builtin_memset(found.masses, 0, sizeof found.masses);
    for (int at = 0; at < found.count; at += lanes) {
        const Floats distance = found.distances(load_logits(found.logits + at, found.count - at));
        const Floats weight = exponential(-distance);
        const Ints bucket = found.bucket_numbers(distance);
        for (int i = 0; i < lanes && at + i < found.count; i++) {
            found.counts[bucket[i]]++;
            found.masses[bucket[i]] += static_cast<double>(weight[i]);
        }
    }
}

// Puts one bucket's tokens in falling order into `sorted`; returns how many.
int sort_bucket(const Candidates& found, int wanted) {
    int n = 0;
    for (int at = 0; at < found.count; at += lanes) {
        const Floats distance = found.distances(load_logits(found.logits + at, found.count - at));
        unsigned left = bits(found.bucket_numbers(distance) == wanted);
        if (found.count - at < lanes) left &= (1u << (found.count - at)) - 1;
        for (; left; left &= left - 1) {
            const int i = at + __builtin_ctz(left);
            found.sorted[n++] = {found.logits[i], found.ids[i]};
        }
    }
    std::qsort(found.sorted, static_cast<size_t>(n), sizeof(Entry), falling);
    return n;
}

// The first tokens in falling order, until one of these holds.
struct Until {
    int count = INT32_MAX;          // so many
    double mass = __builtin_inf();  // their weights add up to this,
    bool beyond = false;            // or to more than this
    float least_weight = 0.0f;      // the next one's weight is below
};

struct Prefix {
    int count = 0;
    double mass = 0.0;
    int last = -1;         // token, when count or mass stopped it
    bool stopped = false;  // else the candidates ended first
};

Prefix walk(const Candidates& found, const Until& until) {
    Prefix prefix;
    const auto enough = [&](double mass) { return until.beyond ? mass > until.mass : mass >= until.mass; };
    for (int b = 0; b < buckets; b++) {
        if (!found.counts[b]) continue;
        if (found.counts[b] < until.count - prefix.count && !enough(prefix.mass + found.masses[b]) &&
            (until.least_weight == 0.0f || found.least_weight(b) > until.least_weight)) {
            prefix.count += found.counts[b];
            prefix.mass += found.masses[b];
            continue;
        }
        const int n = sort_bucket(found, b);
        for (int i = 0; i < n; i++) {
            const float weight = exponential(-found.distances(all(found.sorted[i].logit)))[0];
            prefix.stopped = weight < until.least_weight;
            if (prefix.stopped) return prefix;
            prefix.count++;
            prefix.mass += static_cast<double>(weight);
            prefix.last = found.sorted[i].id;
            prefix.stopped = prefix.count == until.count || enough(prefix.mass);
            if (prefix.stopped) return prefix;
        }
    }
    return prefix;
}

struct Options {
    int top_k;
    float top_p, min_p, uniform;
};

// The drawn token, or -1 if the candidates do not reach far enough to know.
int draw(const Candidates& found, const Options& how, int vocabulary) {
    const bool complete = found.reach == far;
    int count = complete ? found.count : vocabulary;
    double mass = found.total;
    const auto keep = [&](const Until& until) {
        const Prefix kept = walk(found, until);
        count = kept.count;
        mass = kept.mass;
        return kept.stopped || complete;
    };
    if (how.top_k > 0 && how.top_k < count && !keep({.count = how.top_k})) return -1;
    if (how.top_p < 1.0f && !keep({.count = count, .mass = static_cast<double>(how.top_p) * mass})) return -1;
    if (how.min_p > 0.0f && !keep({.count = count, .least_weight = how.min_p})) return -1;
    // The count stops it too: rounding may leave the mark beyond the last token that was kept.
    const Prefix drawn =
        walk(found, {.count = count, .mass = static_cast<double>(how.uniform) * mass, .beyond = true});
    return drawn.stopped ? drawn.last : -1;
}

int sample_row(const float* logits, int n, float temperature, const Options& how, char* memory) {
    const int best = best_token(logits, n);
    if (temperature == 0.0f) return best;
    Candidates found;
    found.best = logits[best];
    found.temperature = temperature;
    found.logits = reinterpret_cast<float*>(memory);
    found.ids = reinterpret_cast<int32_t*>(found.logits + n);
    found.sorted = reinterpret_cast<Entry*>(found.ids + n);
    for (const float reach : reaches) {
        found.reach = reach;
        collect(found, logits, n);
        const int token = draw(found, how, n);
        if (token >= 0) return token;
    }
    return best;
}

void sample(const SampleArgs& args, Share& share) {
    char* memory = args.scratch + share.part * sample_thread_bytes(args.vocabulary);
    for (int r; (r = share.take()) < args.rows;)
        args.token[r] = sample_row(args.logits + int64_t{r} * args.vocabulary, args.vocabulary, args.temperature[r],
                                   {args.top_k[r], args.top_p[r], args.min_p[r], args.uniform[r]}, memory);
}

}  // namespace
}  // namespace tokenworks::cpu
