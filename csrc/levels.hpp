// Probability tables: fitting levels to counts, and coding them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "bitcoder.hpp"
#include "rans.hpp"

namespace sprat::rans {

// Levels to frequencies, in integers so that every machine agrees.
inline Freqs frequencies(const uint8_t* levels, int cells) {
    // round(2^24 * 2^(-i/8))
    static constexpr uint32_t kPower[8] = {16777216, 15384774, 14107901, 12937002,
                                           11863283, 10878678, 9975792,  9147842};
    uint64_t sum = 0;
    std::array<uint32_t, kMaxCells> weight{};
    for (int i = 0; i < cells; ++i) {
        if (levels[i] > kAbsent) throw std::invalid_argument("a level above 127");
        if (levels[i] != kAbsent) weight[i] = kPower[levels[i] & 7] >> (levels[i] >> 3);
        sum += weight[i];
    }
    Freqs freq{};
    int64_t rest = kTotal;
    int best = 0;
    for (int i = 0; i < cells; ++i) {
        if (weight[i]) freq[i] = static_cast<uint16_t>(std::max<uint64_t>(1, weight[i] * uint64_t{kTotal} / sum));
        if (i == cells - 1 && !freq[i]) freq[i] = 1;  // the escape can always be sent
        rest -= freq[i];
        if (freq[i] > freq[best]) best = i;
    }
    if (freq[best] + rest < 1) throw std::invalid_argument("frequencies that cannot sum to one");
    freq[best] = static_cast<uint16_t>(freq[best] + rest);
    return freq;
}

// Visits the levels of every used context in coding order (0, 1, -1, 2, -2, ..., K, -K, escape) with what a decoder
// expects there. visit(kind, context, index, expected) settles the level and returns how far off the expectation was.
enum Kind { kCentre, kOne, kPositive, kNegative = kPositive + 3, kEnd = kNegative + 3, kKinds };

template <class Used, class Visit>
void walk_levels(const uint8_t* levels, Used used, Visit visit) {
    for (int quantizer = 0; quantizer < 2; ++quantizer) {
        int centre = 0, drop = 16, end = 112;  // of the used bucket before: level(0), level(1) - level(0), escape
        for (int b = 0; b < kBuckets; ++b) {
            const int c = quantizer * kBuckets + b, cells = 1 << cell_bits(b), middle = cells / 2 - 1;
            if (!used(c)) continue;
            const auto at = [&](int h) { return int{levels[c * kMaxCells + middle + h]}; };
            const auto clip = [](int level) { return std::clamp(level, 0, kAbsent); };
            int off = visit(kCentre, c, middle, centre);
            for (int h = 1; h <= middle; ++h) {
                const int line = h == 1                   ? at(0) + drop
                                 : at(h - 1) == kAbsent   ? kAbsent
                                                          : 2 * at(h - 1) - at(h - 2);
                off = visit(h == 1 ? kOne : kPositive + std::min(off, 2), c, middle + h, clip(line));
                // With raw bits the coded part is a floor: -h mirrors h - 1.
                off = visit(kNegative + std::min(off, 2), c, middle - h, at(raw_bits(b) ? h - 1 : h));
            }
            visit(kEnd, c, cells - 1, end);
            centre = at(0);
            drop = at(1) - at(0);
            end = levels[c * kMaxCells + cells - 1];
        }
    }
}

template <class Coder>
void code_levels(Coder& coder, uint8_t* used, uint8_t* levels) {
    Bit flags[2];
    IntModel models[kKinds];
    int last = 0;
    const auto flag = [&](int c) {
        used[c] = static_cast<uint8_t>(coder.code(used[c], flags[last].coded()));
        flags[last].update(used[c]);
        return last = used[c];
    };
    walk_levels(levels, flag, [&](int kind, int c, int i, int expected) {
        uint8_t& level = levels[c * kMaxCells + i];
        const int64_t r = code_int(coder, models[kind], int64_t{level} - expected), value = expected + r;
        if (value < 0 || value > kAbsent) throw std::invalid_argument("a level outside 0..127");
        level = static_cast<uint8_t>(value);
        return static_cast<int>(r < 0 ? -r : r);
    });
}

// Levels for the counts of one context set: smooth where the counts are few, exact where they pay for it.
inline void fit_levels(const uint64_t* counts, uint8_t* used, uint8_t* levels) {
    std::array<double, kAbsent + 1> share;
    for (int l = 0; l <= kAbsent; ++l) share[l] = std::exp2(-l / 8.0);
    std::vector<double> p(kContexts * kMaxCells);
    std::array<double, kContexts> total{}, top{};
    for (int c = 0; c < kContexts; ++c) {
        const int cells = 1 << cell_bits(c % kBuckets), middle = cells / 2 - 1;
        const uint64_t* count = counts + c * kMaxCells;
        double sum = 0, outer = 0, steps = 0;
        for (int i = 0; i < cells; ++i) sum += static_cast<double>(count[i]);
        used[c] = sum > 0;
        if (!used[c]) continue;
        for (int h = 1; h <= middle; ++h) {
            const auto both = static_cast<double>(count[middle + h] + count[middle - h]);
            outer += both;
            steps += both * (h - 1);
        }
        // Two pseudo-counts of a two-sided geometric law with the sample's own zeros and mean.
        const double theta = (steps + 0.1) / (steps + outer + 0.5), away = (outer + 0.25) / (sum + 0.75), pseudo = 2;
        double tail = away / 2 * (1 - theta);
        const auto smooth = [&](int i, double law) {
            double& out = p[c * kMaxCells + i];
            out = (static_cast<double>(count[i]) + pseudo * law) / (sum + pseudo);
            top[c] = std::max(top[c], out);
        };
        smooth(middle, 1 - away);
        for (int h = 1; h <= middle; ++h, tail *= theta) {
            smooth(middle + h, tail);
            smooth(middle - h, tail);
        }
        smooth(cells - 1, 0.1 / (sum + 1));
        total[c] = sum;
    }
    walk_levels(levels, [&](int c) { return used[c]; }, [&](int kind, int c, int i, int expected) {
        const double mine = p[c * kMaxCells + i], floor = 1.0 / kTotal;
        const double target = 8 * std::log2(top[c] / mine);
        const int near = static_cast<int>(std::lround(std::clamp(target, 0.0, kAbsent - 1.0)));
        int best = expected;
        double least = std::numeric_limits<double>::infinity();
        const auto consider = [&](int l) {
            const int r = std::abs(l - expected);
            const double table = r ? 2.5 + 2 * std::log2(r) : 0.3;
            const double slots = std::max(floor, top[c] * share[l]);
            const double data = l == kAbsent && kind != kEnd
                                    ? total[c] * mine * (2 * kProbBits)
                                    : total[c] * (mine * -std::log2(slots) + slots / std::log(2.0));
            if (table + data < least) {
                least = table + data;
                best = l;
            }
        };
        for (int l = std::min(near, expected); l <= std::max(near, expected); ++l) consider(l);
        consider(kAbsent);
        levels[c * kMaxCells + i] = static_cast<uint8_t>(best);
        return std::abs(best - expected);
    });
}

}  // namespace sprat::rans
