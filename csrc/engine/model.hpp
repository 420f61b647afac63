// A llama-family decoder: what a step of it does.
#pragma once

#include "attention.hpp"
#include "linear.hpp"

namespace sprat::engine {

struct Shape {
    int layers = 0, hidden = 0, heads = 0, kv_heads = 0, dimension = 0, inner = 0, vocabulary = 0;
    float eps = 0, embed_scale = 1, softcap = 0, attention_scale = 1;
    bool gelu = false;  // else silu
};

struct Rope {  // angles = position * frequency; cosines and sines times `factor`
    std::vector<float> frequency;
    float factor = 1;
};

struct Layer {
    Linear qkv, o, gate_up, down;
    // Weights of norms as they multiply; empty: none.
    std::vector<float> input_norm, q_norm, k_norm, post_attention_norm, mlp_norm, post_mlp_norm;
    int window = 0;  // positions that a token sees, itself among them; 0: all
    int rope = 0;
};

struct Part {  // a session's share of a step
    Cache* cache;
    const int32_t* ids;
    int count;
};

// A table of hashed n-grams, whose rows are added to the first columns of a token's embedding: of the pair that ends with
// the token, and of the triple where `order` is 3 (sprat/golf/blocks/ngrams.py).
struct Ngrams {
    std::shared_ptr<Packed> table;
    std::vector<int32_t> row;  // where a row is stored
    int order = 2;
};

class Model {
  public:
    Model(const Shape& shape, int threads, const Kernel& kernel, bool exact);

    Shape shape;
    std::vector<Layer> layers;
    std::vector<Rope> ropes;
    std::shared_ptr<Packed> embedding;
    std::vector<int32_t> embedding_row;  // where a token's row is stored
    Ngrams ngrams;                       // without a table: none
    std::vector<float> final_norm;
    Linear head;

    // Logits of each part's last token (parts.size(), vocabulary), or of all tokens one after another. Throws
    // std::invalid_argument where ids or lengths are out of range; then no cache has changed.
    void step(const std::vector<Part>& parts, bool all, float* logits);
    int threads() const { return pool_->threads(); }
    const char* kernel() const { return compute_.kernel->name; }
    std::mutex& mutex() { return mutex_; }

  private:
    struct Token {
        int part, position, id;
    };
    void batch(const std::vector<Part>& parts, const Token* tokens, int count);
    void add_ngrams(const std::vector<int32_t>& ids, int position, float* scratch, float* x) const;
    void rotate_and_store(const std::vector<Part>& parts, const Token* tokens, int count, int layer);
    void attention(const std::vector<Part>& parts, const Token* tokens, int count, int layer);
    void angles(const Token* tokens, int count);
    void logits_of(const float* x, int count, float* out);
    void after_fork();

    std::unique_ptr<Pool> pool_;
    Compute compute_;
    std::mutex mutex_;
    long process_;
    std::vector<float> x_, h_, qkv_, mixed_, inner_;
    std::vector<std::vector<float>> cosine_, sine_;  // a rope
    std::vector<Scratch> scratch_;                   // a thread
};

}  // namespace sprat::engine
