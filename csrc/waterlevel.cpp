// Water-level rounding of a block of columns with error feedback and rate-constrained (trellis) decisions.
//
// For each row, minimise over the integers k_1..k_n
//     sum_j  ( (u_j - Q_j step_j) / U_jj )^2  +  lambda * bits(k_j | context),
//     u_j = w_j - sum_{i<j} (u_i - Q_i step_i) U_ij / U_ii                                       (GPTQ / LDLQ feedback)
// where H^-1 = U^T U. With one state this is a greedy decision per column; with a trellis (dependent quantization) a
// Viterbi search in which each survivor carries its own feedback (per-survivor processing), decided at the block's end.
// Columns can be forced to zero (waterlevel_zeros.hpp).
// Sources: GPTQ (arXiv 2210.17323) section 3; CERWU (2505.18758); ISO/IEC 15938-17 (dependent quantization);
// Raheli, Polydoros, Tzou, "Per-survivor processing", IEEE Trans. Comm. 43 (1995).
#include "waterlevel.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "waterlevel_zeros.hpp"

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

inline int sign(int k) { return (k > 0) - (k < 0); }

// One row of a block. S survivors; `residual[parity]` double-buffers the weights that each survivor has left to round.
template <int S>
class RowSearch {
public:
    RowSearch(const Block& b, const Trellis& t) : b_(b), t_(t), zeros_(b), stride_((b.cols + 15) / 16 * 16) {
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
        zeros_.begin(row);
        for (int64_t j = 0; j < b_.cols; ++j) {
            if (zeros_.group_at(j)) {
                const int best = static_cast<int>(std::min_element(cost, cost + S) - cost);
                zeros_.pick(j, &residual_[side][best * stride_]);
                for (int s = 0; s < S; ++s)
                    if (cost[s] < kInf) zeros_.remove(j, &residual_[side][s * stride_]);
            }
            if (zeros_.keeps(j)) step(j, lambda, b_.row_class[row], cost, next_cost, side);
            else skip(j, cost, next_cost, side);
            std::copy(next_cost, next_cost + S, cost);
            side ^= 1;
        }
        zeros_.end(row);
        trace(row, w, static_cast<int>(std::min_element(cost, cost + S) - cost));
    }

private:
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
        for (int64_t j = 0; j < b_.cols; ++j) {
            if (zeros_.group_at(j)) zeros_.remove(j, rest);
            const float e = rest[j] - static_cast<float>(q[j]) * b_.step[j];
            error[j] = zeros_.shift(j) + e * b_.inverse_u[j];
            const float* feedback = b_.feedback + j * b_.cols;
            for (int64_t i = j + 1; i < b_.cols; ++i) rest[i] -= e * feedback[i];
        }
    }

    const Block& b_;
    const Trellis& t_;
    Zeros zeros_;
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
