// Water-level rounding of a block of columns with error feedback and rate-constrained (trellis) decisions.
//
// For each row, minimise over the integers k_1..k_n
//     sum_j  ( (u_j - Q_j step_j) / U_jj )^2  +  lambda * bits(k_j | context),
//     u_j = w_j - sum_{i<j} (u_i - Q_i step_i) U_ij / U_ii                                       (GPTQ / LDLQ feedback)
// where H^-1 = U^T U. With one state this is a greedy decision per column; with a trellis (dependent quantization) a
// Viterbi search in which each survivor carries its own feedback (per-survivor processing), decided at the block's end.
// Zeros can be forced: by a mask, or as a pattern (N of every M columns stay). The columns S that a group loses are those
// whose removal costs least once all the columns that are left, in the group and behind it, make up for it,
//     w_S (A_SS)^-1 w_S^T,     A = U_gg^T U_gg     (the optimal brain surgeon, with all feedback so far),
// and they do make up for it, w -= w_S (A_SS)^-1 (U^T U)_S, before the group is rounded.
// Sources: GPTQ (arXiv 2210.17323) section 3; CERWU (2505.18758); ISO/IEC 15938-17 (dependent quantization);
// Raheli, Polydoros, Tzou, "Per-survivor processing", IEEE Trans. Comm. 43 (1995); Hassibi, Stork, "Optimal brain surgeon"
// (NIPS 1992); SparseGPT (2301.00774) for masks chosen on the way.
#include "waterlevel.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

namespace sprat {

const Trellis& trellis(int states) {
    static const Trellis plain{1, {{0, 0}}, {0}};
    static const Trellis four{4, {{0, 2}, {2, 0}, {1, 3}, {3, 1}}, {0, 0, 1, 1}};
    static const Trellis eight{
        8, {{0, 2}, {5, 7}, {1, 3}, {6, 4}, {2, 0}, {4, 6}, {3, 1}, {7, 5}}, {0, 1, 0, 1, 0, 1, 0, 1}};
    switch (states) {
        case 1: return plain;
        case 4: return four;
        case 8: return eight;
        default: throw std::invalid_argument("a trellis has 1, 4 or 8 states");
    }
}

namespace {

constexpr int64_t kMaxCols = 128;

inline int sign(int k) { return (k > 0) - (k < 0); }

// One row of a block. S survivors; `residual[parity]` double-buffers the weights that each survivor has left to round.
template <int S>
class RowSearch {
public:
    RowSearch(const Block& b, const Trellis& t) : b_(b), t_(t), stride_((b.cols + 15) / 16 * 16) {
        for (auto& r : residual_) r.assign(S * stride_, 0.0f);
        choice_.resize(b.cols * S);
        from_.resize(b.cols * S);
        keep_.assign(b.cols, 1);
        picked_.assign(b.cols, 0);
        shift_.assign(b.cols, 0.0f);
    }

    void run(int64_t row) {
        const float* w = b_.w + row * b_.w_stride;
        float cost[S], next_cost[S];
        std::fill(cost, cost + S, kInf);
        const int start = S == 1 ? 0 : b_.state[row];
        cost[start] = 0.0f;
        std::memcpy(&residual_[0][start * stride_], w, sizeof(float) * b_.cols);
        int side = 0;
        const float lambda = b_.row_lambda[row];
        uint8_t* keep = b_.keep ? b_.keep + row * b_.cols : nullptr;
        if (keep && !b_.group) std::memcpy(keep_.data(), keep, b_.cols);
        for (int64_t j = 0; j < b_.cols; ++j) {
            if (b_.group && j % b_.group == 0) {
                const int best = static_cast<int>(std::min_element(cost, cost + S) - cost);
                pick(j, &residual_[side][best * stride_]);
                for (int s = 0; s < S; ++s)
                    if (cost[s] < kInf) remove(j, &residual_[side][s * stride_]);
            }
            if (keep_[j]) step(j, lambda, b_.row_class[row], cost, next_cost, side);
            else skip(j, cost, next_cost, side);
            std::copy(next_cost, next_cost + S, cost);
            side ^= 1;
        }
        if (keep && b_.group) std::memcpy(keep, keep_.data(), b_.cols);
        trace(row, w, static_cast<int>(std::min_element(cost, cost + S) - cost));
    }

private:
    static constexpr float kInf = std::numeric_limits<float>::infinity();

    // Which columns of the group at j the row loses, from what one survivor has left: keep_ and picked_.
    void pick(int64_t j, const float* rest) {
        const float* w = rest + j;
        uint8_t* keep = &keep_[j];
        std::fill(keep, keep + b_.group, uint8_t{1});
        if (!b_.sets) {
            std::vector<int>& order = order_;
            order.resize(b_.group);
            for (int i = 0; i < b_.group; ++i) order[i] = i;
            const auto saliency = [&](int i) {
                const float s = w[i] * b_.inverse_u[j + i];
                return std::isfinite(s) ? s * s : kInf;
            };
            std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return saliency(a) < saliency(b); });
            for (int i = 0; i < b_.removed; ++i) keep[order[i]] = 0;
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

    // Takes the picked columns out of `rest`: they become zero, and what is left makes up for them. shift_[j..] is then what
    // the columns behind the block must still make up for, in errors over U_jj.
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

    float u(int64_t i, int64_t j) const { return b_.feedback[i * b_.cols + j] / b_.inverse_u[i]; }

    // A column that must be zero.
    void skip(int64_t j, const float* cost, float* next_cost, int side) {
        std::fill(next_cost, next_cost + S, kInf);
        const float* feedback = b_.feedback + j * b_.cols;
        for (int s = 0; s < S; ++s) {
            if (cost[s] == kInf) continue;
            const int n = S == 1 || b_.compact ? s : t_.next[s][0];  // a permutation of the states
            const float* old = &residual_[side][s * stride_];
            float* fresh = &residual_[side ^ 1][n * stride_];
            const float e = old[j], loss = e * b_.inverse_u[j], total = cost[s] + loss * loss;
            next_cost[n] = total < kInf ? total : cost[s];
            choice_[j * S + n] = 0;
            from_[j * S + n] = static_cast<uint8_t>(s);
            for (int64_t i = j + 1; i < b_.cols; ++i) fresh[i] = old[i] - e * feedback[i];
        }
    }

    void step(int64_t j, float lambda, int row_class, const float* cost, float* next_cost, int side) {
        std::fill(next_cost, next_cost + S, kInf);
        const float delta = b_.step[j], inv_delta = 1.0f / delta, weight = delta * b_.inverse_u[j];
        const float weight2 = weight * weight;
        const int bucket = std::clamp(row_class + b_.col_class[j] - b_.offset, 0, b_.buckets - 1);
        const int width = 2 * b_.max_symbol + 1;
        float chosen_error[S] = {};
        int* k_out = &choice_[j * S];
        uint8_t* from = &from_[j * S];
        std::fill(k_out, k_out + S, 0);
        std::fill(from, from + S, uint8_t{0});
        for (int s = 0; s < S; ++s) {
            if (cost[s] == kInf) continue;
            const float t = residual_[side][s * stride_ + j] * inv_delta;
            if (!std::isfinite(t)) continue;
            const int quantizer = S == 1 ? 0 : t_.quantizer[s];
            const float* bits = b_.bits + (static_cast<int64_t>(quantizer) * b_.buckets + bucket) * width + b_.max_symbol;
            int candidate[3];
            candidates(t, quantizer, candidate);
            if (b_.limit) restrict(t, candidate);
            for (int k : candidate) {
                const int q = S == 1 ? k : quantizer ? 2 * k - sign(k) : 2 * k;
                const float e = t - static_cast<float>(q);
                const int clipped = std::clamp(k, -b_.max_symbol, b_.max_symbol);
                // Past the table a symbol costs about two more bits an octave; linear is enough to keep the order.
                const float rate = bits[clipped] + 0.05f * static_cast<float>(std::abs(k - clipped));
                const float total = cost[s] + weight2 * e * e + lambda * rate;
                const int n = S == 1 ? 0 : t_.next[s][k & 1];
                if (total < next_cost[n]) {
                    next_cost[n] = total;
                    k_out[n] = k;
                    from[n] = static_cast<uint8_t>(s);
                    chosen_error[n] = e * delta;
                }
            }
        }
        // Operands that are not finite can leave no path a price: zeros then keep the symbols and the states together.
        if (std::none_of(next_cost, next_cost + S, [](float c) { return c < kInf; })) {
            const int s = static_cast<int>(std::find_if(cost, cost + S, [](float c) { return c < kInf; }) - cost);
            const int n = S == 1 ? 0 : t_.next[s][0];
            next_cost[n] = cost[s];
            k_out[n] = b_.zero ? 0 : 1;
            from[n] = static_cast<uint8_t>(s);
        }
        const float* feedback = b_.feedback + j * b_.cols;
        for (int n = 0; n < S; ++n) {
            if (next_cost[n] == kInf) continue;
            const float* old = &residual_[side][from[n] * stride_];
            float* fresh = &residual_[side ^ 1][n * stride_];
            const float e = chosen_error[n];
            for (int64_t i = j + 1; i < b_.cols; ++i) fresh[i] = old[i] - e * feedback[i];
        }
    }

    // The two nearest symbols (one of each parity) and zero.
    static void candidates(float t, int quantizer, int* out) {
        const float u = S == 1 ? t : quantizer ? 0.5f * (t + std::copysign(1.0f, t)) : 0.5f * t;
        const float clipped = std::clamp(u, -1e9f, 1e9f);
        const int low = static_cast<int>(std::floor(clipped));
        out[0] = low;
        out[1] = low + 1;
        out[2] = 0;
        // Under Q1 the symbol 0 stands between -1 and 1, both of which are as near as their parity allows.
        if (S > 1 && quantizer && std::fabs(t) < 1.0f) { out[0] = t < 0 ? -1 : 1; out[1] = 0; }
    }

    void restrict(float t, int* candidate) const {
        for (int i = 0; i < 3; ++i) {
            candidate[i] = std::clamp(candidate[i], -b_.limit, b_.limit);
            if (!b_.zero && candidate[i] == 0) candidate[i] = t < 0 ? -1 : 1;
        }
    }

    void trace(int64_t row, const float* w, int state) {
        if (S > 1) b_.state[row] = static_cast<uint8_t>(state);
        int32_t* q = b_.q + row * b_.q_stride;
        for (int64_t j = b_.cols - 1; j >= 0; --j) {
            const int k = choice_[j * S + state];
            const int before = from_[j * S + state];
            q[j] = S == 1 ? k : t_.quantizer[before] ? 2 * k - sign(k) : 2 * k;
            state = before;
        }
        // The errors once more along the chosen path: the survivors kept only what they had left.
        float* rest = &residual_[0][0];
        float* error = b_.error + row * b_.cols;
        std::memcpy(rest, w, sizeof(float) * b_.cols);
        std::fill(shift_.begin(), shift_.end(), 0.0f);
        for (int64_t j = 0; j < b_.cols; ++j) {
            if (b_.group && j % b_.group == 0) remove(j, rest);
            const float e = rest[j] - static_cast<float>(q[j]) * b_.step[j];
            error[j] = shift_[j] + e * b_.inverse_u[j];
            const float* feedback = b_.feedback + j * b_.cols;
            for (int64_t i = j + 1; i < b_.cols; ++i) rest[i] -= e * feedback[i];
        }
    }

    const Block& b_;
    const Trellis& t_;
    int64_t stride_;
    std::vector<float> residual_[2];
    std::vector<int> choice_;
    std::vector<uint8_t> from_;
    std::vector<uint8_t> keep_;   // of the row: 0 where Q must be zero
    std::vector<int> picked_;     // at a group's first column: its set
    std::vector<float> shift_;    // of the path that `remove` saw last
    std::vector<int> order_;
};

template <int S>
void round_rows(const Block& block, const Trellis& t, int64_t begin, int64_t end) {
    RowSearch<S> search(block, t);
    for (int64_t row = begin; row < end; ++row) search.run(row);
}

void round_range(const Block& block, const Trellis& t, int64_t begin, int64_t end) {
    switch (t.states) {
        case 1: return round_rows<1>(block, t, begin, end);
        case 4: return round_rows<4>(block, t, begin, end);
        default: return round_rows<8>(block, t, begin, end);
    }
}

}  // namespace

void round_block(const Block& block, const Trellis& t, int threads) {
    const int64_t parts = std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, block.rows / 16));
    std::vector<std::thread> pool;
    for (int64_t p = 1; p < parts; ++p)
        pool.emplace_back(round_range, std::cref(block), std::cref(t), block.rows * p / parts, block.rows * (p + 1) / parts);
    round_range(block, t, 0, block.rows / parts);
    for (auto& thread : pool) thread.join();
}

}  // namespace sprat

namespace nb = nanobind;

namespace {

using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Inverses = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Sets = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Array>
bool fits(const Array& a, std::initializer_list<int64_t> shape) {
    size_t axis = 0;
    for (int64_t size : shape)
        if (static_cast<int64_t>(a.shape(axis++)) != size) return false;
    return true;
}

// The pattern of zeros, once its parts belong together and to `block`.
void set_pattern(sprat::Block& block, int group, int removed, const std::optional<Sets>& sets,
                 const std::optional<Inverses>& inverse) {
    if (!group) return;
    if (group < 2 || removed < 1 || removed >= group || block.cols % group || sets.has_value() != inverse.has_value())
        throw std::invalid_argument("round_block: a pattern that the block cannot have");
    block.group = group;
    block.removed = removed;
    if (!sets) return;
    const auto count = static_cast<int64_t>(sets->shape(0));
    if (count < 1 || !fits(*sets, {count, removed}) || !fits(*inverse, {block.cols / group, count, removed, removed}))
        throw std::invalid_argument("round_block: the arrays' shapes do not belong together");
    for (int64_t i = 0; i < count * removed; ++i)
        if (sets->data()[i] < (i % removed ? sets->data()[i - 1] + 1 : 0) || sets->data()[i] >= group)
            throw std::invalid_argument("round_block: a set that is not ascending columns of a group");
    block.sets = static_cast<int>(count);
    block.set = sets->data();
    block.inverse = inverse->data();
}

}  // namespace

void register_waterlevel(nb::module_& m) {
    m.def(
        "round_block",
        [](Matrix w, Matrix feedback, Floats inverse_u, Floats step, Floats row_lambda, Bytes row_class, Bytes col_class,
           Tables bits, int offset, int states, nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> state,
           nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> q,
           nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> error, int threads, std::optional<Mask> keep,
           int group, int removed, std::optional<Sets> sets, std::optional<Inverses> inverse, bool compact, int limit,
           bool zero) {
            const int64_t rows = w.shape(0), cols = w.shape(1);
            if (cols < 1 || cols > sprat::kMaxCols || !fits(feedback, {cols, cols}) || !fits(inverse_u, {cols}) ||
                !fits(step, {cols}) || !fits(row_lambda, {rows}) || !fits(row_class, {rows}) ||
                !fits(col_class, {cols}) || !fits(state, {rows}) || !fits(q, {rows, cols}) ||
                !fits(error, {rows, cols}) || bits.shape(0) != 2 || bits.shape(1) < 1 || bits.shape(2) % 2 != 1 ||
                (keep && !fits(*keep, {rows, cols})))
                throw std::invalid_argument("round_block: the arrays' shapes do not belong together");
            const auto& t = sprat::trellis(states);
            for (int64_t i = 0; i < rows; ++i)
                if (state.data()[i] >= states) throw std::invalid_argument("round_block: a state outside the trellis");
            if (limit < 0 || (limit && states > 1) || (!limit && !zero))
                throw std::invalid_argument("round_block: a limit of the integers needs one state; no zeros, a limit");
            sprat::Block block{w.data(), cols, rows, cols, feedback.data(), inverse_u.data(), step.data(),
                               row_lambda.data(), row_class.data(), col_class.data(), bits.data(),
                               static_cast<int>(bits.shape(1)), offset, static_cast<int>(bits.shape(2) / 2),
                               state.data(), q.data(), cols, error.data()};
            block.keep = keep ? keep->data() : nullptr;
            block.compact = compact;
            block.limit = limit;
            block.zero = zero;
            set_pattern(block, group, removed, sets, inverse);
            nb::gil_scoped_release release;
            sprat::round_block(block, t, threads);
        },
        nb::arg("w"), nb::arg("feedback"), nb::arg("inverse_u"), nb::arg("step"), nb::arg("row_lambda"),
        nb::arg("row_class"), nb::arg("col_class"), nb::arg("bits"), nb::arg("offset"), nb::arg("states"), nb::arg("state"),
        nb::arg("q"), nb::arg("error"), nb::arg("threads") = 1, nb::arg("keep") = nb::none(), nb::arg("group") = 0,
        nb::arg("removed") = 0, nb::arg("sets") = nb::none(), nb::arg("inverse") = nb::none(), nb::arg("compact") = false,
        nb::arg("limit") = 0, nb::arg("zero") = true);
}
