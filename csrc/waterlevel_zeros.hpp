// The columns of one row that must be zero: by a mask, or as a pattern (N of every M columns stay) chosen group by group.
//
// The columns S that a group loses are those whose removal costs least once all the columns that are left, in the group and
// behind it, make up for it,
//     w_S (A_SS)^-1 w_S^T,     A = U_gg^T U_gg     (the optimal brain surgeon, with all feedback so far),
// and they do make up for it, w -= w_S (A_SS)^-1 (U^T U)_S, before the group is rounded.
// Sources: Hassibi, Stork, "Optimal brain surgeon" (NIPS 1992); SparseGPT (2301.00774) for masks chosen on the way.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "waterlevel.hpp"

namespace sprat {

class Zeros {
public:
    explicit Zeros(const Block& b) : b_(b), keep_(b.cols, 1), picked_(b.cols, 0), shift_(b.cols, 0.0f), order_(b.group) {}

    // A row's mask, where no pattern chooses it.
    void begin(int64_t row) {
        if (b_.keep && !b_.group) std::memcpy(keep_.data(), b_.keep + row * b_.cols, b_.cols);
    }

    // What the pattern chose goes to the block.
    void end(int64_t row) const {
        if (b_.keep && b_.group) std::memcpy(b_.keep + row * b_.cols, keep_.data(), b_.cols);
    }

    // Whether j is the first column of a group.
    bool group_at(int64_t j) const { return b_.group && j % b_.group == 0; }

    bool keeps(int64_t j) const { return keep_[j]; }

    // What `remove` left for the columns behind the block to make up for, in errors over U_jj.
    float shift(int64_t j) const { return shift_[j]; }

    // Which columns of the group at j the row loses, from what one survivor has left.
    void pick(int64_t j, const float* rest) {
        const float* w = rest + j;
        uint8_t* keep = &keep_[j];
        std::fill(keep, keep + b_.group, uint8_t{1});
        if (!b_.sets) {
            std::iota(order_.begin(), order_.end(), 0);
            const auto saliency = [&](int i) {
                const float s = w[i] * b_.inverse_u[j + i];
                return std::isfinite(s) ? s * s : kInf;
            };
            std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) { return saliency(a) < saliency(b); });
            for (int i = 0; i < b_.removed; ++i) keep[order_[i]] = 0;
            return;
        }
        const int k = b_.removed;
        const float* inverse = b_.inverse + j / b_.group * b_.sets * k * k;
        float least = kInf;
        int best = 0;
        for (int s = 0; s < b_.sets; ++s, inverse += k * k) {
            const int32_t* set = b_.set + s * k;
            float total = 0.0f;
            for (int a = 0; a < k; ++a) {
                float row = 0.0f;
                for (int c = 0; c < k; ++c) row += inverse[a * k + c] * w[set[c]];
                total += row * w[set[a]];
            }
            if (total < least) {
                least = total;
                best = s;
            }
        }
        picked_[j] = best;
        for (int a = 0; a < k; ++a) keep[b_.set[best * k + a]] = 0;
    }

    // Takes the picked columns out of `rest`: they become zero, and what is left makes up for them.
    void remove(int64_t j, float* rest) {
        if (!b_.sets) return;
        const int k = b_.removed, set_at = picked_[j];
        const int32_t* set = b_.set + set_at * k;
        const float* inverse = b_.inverse + (j / b_.group * b_.sets + set_at) * k * k;
        float* shift = &shift_[j];
        std::fill(shift, shift + b_.group, 0.0f);
        for (int a = 0; a < k; ++a) {
            float y = 0.0f;
            for (int c = 0; c < k; ++c) y += inverse[a * k + c] * rest[j + set[c]];
            for (int i = 0; i <= set[a]; ++i) shift[i] += y * u(j + i, j + set[a]);
        }
        for (int i = 0; i < b_.group; ++i) {
            const float pull = shift[i] / b_.inverse_u[j + i];
            const float* feedback = b_.feedback + (j + i) * b_.cols;
            for (int64_t t = j + i; t < b_.cols; ++t) rest[t] -= pull * feedback[t];
        }
        for (int a = 0; a < k; ++a) rest[j + set[a]] = 0.0f;  // but for rounding
    }

private:
    float u(int64_t i, int64_t j) const { return b_.feedback[i * b_.cols + j] / b_.inverse_u[i]; }

    const Block& b_;
    std::vector<uint8_t> keep_;  // 0 where Q must be zero
    std::vector<int> picked_;    // at a group's first column: its set
    std::vector<float> shift_;
    std::vector<int> order_;
};

}  // namespace sprat
