// Water-level rounding of a block of columns with error feedback and rate-constrained (trellis) decisions.
//
// For each row, minimise over the integers k_1..k_n
//     sum_j  ( (u_j - Q_j step_j) / U_jj )^2  +  lambda * bits(k_j | context),
//     u_j = w_j - sum_{i<j} (u_i - Q_i step_i) U_ij / U_ii                                       (GPTQ / LDLQ feedback)
// where H^-1 = U^T U. With one state this is a greedy decision per column; with a trellis (dependent quantization) a
// Viterbi search in which each survivor carries its own feedback (per-survivor processing), decided at the block's end.
// Sources: GPTQ (arXiv 2210.17323) section 3; CERWU (2505.18758); ISO/IEC 15938-17 (dependent quantization);
// Raheli, Polydoros, Tzou, "Per-survivor processing", IEEE Trans. Comm. 43 (1995).
#include "waterlevel.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
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
        for (int64_t j = 0; j < b_.cols; ++j) {
            step(j, lambda, b_.row_class[row], cost, next_cost, side);
            std::copy(next_cost, next_cost + S, cost);
            side ^= 1;
        }
        trace(row, w, static_cast<int>(std::min_element(cost, cost + S) - cost));
    }

private:
    static constexpr float kInf = std::numeric_limits<float>::infinity();

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
            k_out[n] = 0;
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
        for (int64_t j = 0; j < b_.cols; ++j) {
            const float e = rest[j] - static_cast<float>(q[j]) * b_.step[j];
            error[j] = e * b_.inverse_u[j];
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

void register_waterlevel(nb::module_& m) {
    using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
    using Tables = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
    using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    m.def(
        "round_block",
        [](Matrix w, Matrix feedback, Floats inverse_u, Floats step, Floats row_lambda, Bytes row_class, Bytes col_class,
           Tables bits, int offset, int states, nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> state,
           nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> q,
           nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> error, int threads) {
            const int64_t rows = w.shape(0), cols = w.shape(1);
            auto fits = [](auto& a, int64_t r, int64_t c) {
                return static_cast<int64_t>(a.shape(0)) == r && static_cast<int64_t>(a.shape(1)) == c;
            };
            auto length = [](auto& a, int64_t n) { return static_cast<int64_t>(a.shape(0)) == n; };
            if (cols < 1 || cols > sprat::kMaxCols || !fits(feedback, cols, cols) || !length(inverse_u, cols) ||
                !length(step, cols) || !length(row_lambda, rows) || !length(row_class, rows) ||
                !length(col_class, cols) || !length(state, rows) || !fits(q, rows, cols) || !fits(error, rows, cols) ||
                bits.shape(0) != 2 || bits.shape(1) < 1 || bits.shape(2) % 2 != 1)
                throw std::invalid_argument("round_block: the arrays' shapes do not belong together");
            const auto& t = sprat::trellis(states);
            for (int64_t i = 0; i < rows; ++i)
                if (state.data()[i] >= states) throw std::invalid_argument("round_block: a state outside the trellis");
            sprat::Block block{w.data(), cols, rows, cols, feedback.data(), inverse_u.data(), step.data(),
                               row_lambda.data(), row_class.data(), col_class.data(), bits.data(),
                               static_cast<int>(bits.shape(1)), offset, static_cast<int>(bits.shape(2) / 2),
                               state.data(), q.data(), cols, error.data()};
            nb::gil_scoped_release release;
            sprat::round_block(block, t, threads);
        },
        nb::arg("w"), nb::arg("feedback"), nb::arg("inverse_u"), nb::arg("step"), nb::arg("row_lambda"),
        nb::arg("row_class"), nb::arg("col_class"), nb::arg("bits"), nb::arg("offset"), nb::arg("states"), nb::arg("state"),
        nb::arg("q"), nb::arg("error"), nb::arg("threads") = 1);
}
