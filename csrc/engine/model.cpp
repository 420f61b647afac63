#include "model.hpp"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <set>

#include "elementwise.hpp"
#include "pack.hpp"

namespace sprat::engine {

namespace {

constexpr int kBatch = 256;  // tokens that go through the layers together

size_t size(int n) { return static_cast<size_t>(n); }

template <class F>
void each_token(Pool& pool, int tokens, F f) {
    pool.run((tokens + 7) / 8, [&](int piece, int) {
        for (int t = piece * 8; t < std::min(tokens, piece * 8 + 8); ++t) f(size(t));
    });
}

}  // namespace

Model::Model(const Shape& s, int threads, const Kernel& kernel, bool exact)
    : shape(s), layers(size(s.layers)), pool_(std::make_unique<Pool>(threads)), process_(getpid()) {
    compute_.kernel = &kernel;
    compute_.exact = exact;
    compute_.unpacked.resize(size(threads));
    compute_.results.resize(size(threads));
    scratch_.resize(size(threads));
    compute_.pool = pool_.get();
}

void Model::after_fork() {
    if (process_ == getpid()) return;
    const int threads = pool_->threads();
    pool_->abandon();
    (void)pool_.release();  // its waiting threads are the parent's
    pool_ = std::make_unique<Pool>(threads);
    compute_.pool = pool_.get();
    process_ = getpid();
}

void Model::step(const std::vector<Part>& parts, bool all, float* logits) {
    std::vector<Token> tokens;
    std::set<const Cache*> seen;
    for (size_t i = 0; i < parts.size(); ++i) {
        const Part& part = parts[i];
        if (part.count < 1) throw std::invalid_argument("a session was given no token");
        if (!seen.insert(part.cache).second) throw std::invalid_argument("a session is in this step twice");
        if (part.count > part.cache->capacity() - part.cache->length)
            throw std::invalid_argument("the context is full: " + std::to_string(part.cache->length) + " tokens and " +
                                        std::to_string(part.count) + " more, room for " +
                                        std::to_string(part.cache->capacity()));
        for (int t = 0; t < part.count; ++t) {
            if (part.ids[t] < 0 || part.ids[t] >= shape.vocabulary)
                throw std::invalid_argument("token " + std::to_string(part.ids[t]) + " is outside the vocabulary of " +
                                            std::to_string(shape.vocabulary));
            tokens.push_back({static_cast<int>(i), part.cache->length + t, part.ids[t]});
        }
    }
    after_fork();
    if (ngrams.table)
        for (const Part& part : parts) {
            part.cache->ids.resize(size(part.cache->length));
            part.cache->ids.insert(part.cache->ids.end(), part.ids, part.ids + part.count);
        }
    std::vector<float> last;
    size_t row = 0;
    const auto width = size(shape.hidden);
    for (size_t begin = 0; begin < tokens.size(); begin += kBatch) {
        const size_t end = std::min(tokens.size(), begin + kBatch);
        batch(parts, tokens.data() + begin, static_cast<int>(end - begin));
        for (size_t t = begin; t < end; ++t) {
            const bool is_last = t + 1 == tokens.size() || tokens[t + 1].part != tokens[t].part;
            if (!all && !is_last) continue;
            const float* from = x_.data() + (t - begin) * width;
            last.insert(last.end(), from, from + width);
        }
        logits_of(last.data(), static_cast<int>(last.size() / width), logits + row * size(shape.vocabulary));
        row += last.size() / width;
        last.clear();
    }
    for (const Part& part : parts) part.cache->length += part.count;
}

void Model::batch(const std::vector<Part>& parts, const Token* tokens, int count) {
    const auto n = size(count), hidden = size(shape.hidden), inner = size(shape.inner);
    const size_t width = size(shape.dimension) * size(shape.heads + 2 * shape.kv_heads);
    const size_t query = size(shape.dimension) * size(shape.heads);
    x_.resize(n * hidden);
    h_.resize(n * hidden);
    qkv_.resize(n * width);
    mixed_.resize(n * query);
    inner_.resize(n * 2 * inner);
    Pool& pool = *pool_;
    each_token(pool, count, [&](size_t t) {
        expand_row(*embedding, embedding_row[size(tokens[t].id)], x_.data() + t * hidden);
        if (shape.embed_scale != 1) scale_by(shape.embed_scale, hidden, x_.data() + t * hidden);
        if (ngrams.table)
            add_ngrams(parts[size(tokens[t].part)].cache->ids, tokens[t].position, h_.data() + t * hidden,
                       x_.data() + t * hidden);
    });
    angles(tokens, count);
    const auto normed = [&](const std::vector<float>& weight) {
        each_token(pool, count, [&](size_t t) {
            rms_norm(x_.data() + t * hidden, weight.data(), shape.eps, hidden, h_.data() + t * hidden);
        });
    };
    const auto add_back = [&](const std::vector<float>& norm) {
        each_token(pool, count, [&](size_t t) {
            float* h = h_.data() + t * hidden;
            if (!norm.empty()) rms_norm(h, norm.data(), shape.eps, hidden, h);
            add(h, hidden, x_.data() + t * hidden);
        });
    };
    for (int l = 0; l < shape.layers; ++l) {
        const Layer& layer = layers[size(l)];
        normed(layer.input_norm);
        layer.qkv.apply(compute_, h_.data(), hidden, count, qkv_.data(), width);
        rotate_and_store(parts, tokens, count, l);
        attention(parts, tokens, count, l);
        layer.o.apply(compute_, mixed_.data(), query, count, h_.data(), hidden);
        add_back(layer.post_attention_norm);
        normed(layer.mlp_norm);
        layer.gate_up.apply(compute_, h_.data(), hidden, count, inner_.data(), 2 * inner);
        each_token(pool, count, [&](size_t t) {
            float* gate = inner_.data() + t * 2 * inner;
            (shape.gelu ? gelu_times : silu_times)(gate + inner, inner, gate);
        });
        layer.down.apply(compute_, inner_.data(), 2 * inner, count, h_.data(), hidden);
        add_back(layer.post_mlp_norm);
    }
}

void Model::add_ngrams(const std::vector<int32_t>& ids, int position, float* scratch, float* x) const {
    constexpr int64_t kMultipliers[] = {2654435761, 2246822519, 3266489917};
    int64_t mixed = ids[size(position)] * kMultipliers[0];
    for (int back = 1; back < ngrams.order; ++back) {
        const int64_t before = position >= back ? ids[size(position - back)] : 0;
        mixed ^= (before + 1) * kMultipliers[back];
        const auto row = size(static_cast<int>((mixed >> 15) % ngrams.table->rows));
        expand_row(*ngrams.table, ngrams.row[row], scratch);
        add(scratch, size(ngrams.table->columns), x);
    }
}

void Model::angles(const Token* tokens, int count) {
    cosine_.resize(ropes.size());
    sine_.resize(ropes.size());
    const auto half = size(shape.dimension) / 2;
    for (size_t k = 0; k < ropes.size(); ++k) {
        cosine_[k].resize(size(count) * half);
        sine_[k].resize(size(count) * half);
        each_token(*pool_, count, [&](size_t t) {
            const auto position = static_cast<float>(tokens[t].position);
            for (size_t i = 0; i < half; ++i) {
                const float angle = position * ropes[k].frequency[i];
                cosine_[k][t * half + i] = std::cos(angle) * ropes[k].factor;
                sine_[k][t * half + i] = std::sin(angle) * ropes[k].factor;
            }
        });
    }
}

void Model::rotate_and_store(const std::vector<Part>& parts, const Token* tokens, int count, int l) {
    const Layer& layer = layers[size(l)];
    const auto dimension = size(shape.dimension), half = dimension / 2;
    const size_t width = dimension * size(shape.heads + 2 * shape.kv_heads);
    const std::vector<float>&cosine = cosine_[size(layer.rope)], &sine = sine_[size(layer.rope)];
    each_token(*pool_, count, [&](size_t t) {
        float* q = qkv_.data() + t * width;
        float* k = q + dimension * size(shape.heads);
        const float* v = k + dimension * size(shape.kv_heads);
        const auto turn = [&](float* head, const std::vector<float>& norm) {
            if (!norm.empty()) rms_norm(head, norm.data(), shape.eps, dimension, head);
            rotate(cosine.data() + t * half, sine.data() + t * half, dimension, head);
        };
        for (int h = 0; h < shape.heads; ++h) turn(q + size(h) * dimension, layer.q_norm);
        for (int h = 0; h < shape.kv_heads; ++h) {
            turn(k + size(h) * dimension, layer.k_norm);
            parts[size(tokens[t].part)].cache->put(l, h, tokens[t].position, k + size(h) * dimension,
                                                   v + size(h) * dimension);
        }
    });
}

void Model::attention(const std::vector<Part>& parts, const Token* tokens, int count, int l) {
    const auto dimension = size(shape.dimension);
    const size_t width = dimension * size(shape.heads + 2 * shape.kv_heads), query = dimension * size(shape.heads);
    const int window = layers[size(l)].window, group = shape.heads / shape.kv_heads;
    // One task: queries of one session, of heads that share a key-value head.
    struct Task {
        int head, first, count;  // rows: token * group + head within the group, from the session's first token
        int token;               // the session's first
    };
    std::vector<Task> tasks;
    for (int begin = 0, end; begin < count; begin = end) {
        for (end = begin; end < count && tokens[end].part == tokens[begin].part; ++end) {
        }
        const int rows = (end - begin) * group;
        for (int head = 0; head < shape.kv_heads; ++head)
            for (int r = 0; r < rows; r += kQueries) tasks.push_back({head, r, std::min(kQueries, rows - r), begin});
    }
    pool_->run(static_cast<int>(tasks.size()), [&](int index, int thread) {
        const Task& task = tasks[size(index)];
        Queries queries;
        queries.count = task.count;
        for (int i = 0; i < task.count; ++i) {
            const int row = task.first + i, token = task.token + row / group, head = task.head * group + row % group;
            const int last = tokens[token].position + 1;
            queries.q[i] = qkv_.data() + size(token) * width + size(head) * dimension;
            queries.out[i] = mixed_.data() + size(token) * query + size(head) * dimension;
            queries.first[i] = window > 0 ? std::max(0, last - window) : 0;
            queries.last[i] = last;
        }
        attend(*parts[size(tokens[task.token].part)].cache, l, task.head, shape.attention_scale, queries,
               *compute_.kernel, scratch_[size(thread)]);
    });
}

void Model::logits_of(const float* x, int count, float* out) {
    const auto hidden = size(shape.hidden), vocabulary = size(shape.vocabulary);
    if (!count) return;
    h_.resize(std::max(h_.size(), size(count) * hidden));
    for (size_t t = 0; t < size(count); ++t)
        rms_norm(x + t * hidden, final_norm.data(), shape.eps, hidden, h_.data() + t * hidden);
    head.apply(compute_, h_.data(), hidden, count, out, vocabulary);
    if (shape.softcap > 0)
        for (size_t t = 0; t < size(count); ++t) soft_cap(shape.softcap, vocabulary, out + t * vocabulary);
}

}  // namespace sprat::engine
