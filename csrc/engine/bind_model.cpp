// A model: its shape, what it is filled with, and its step.
#include "bind.hpp"
#include "model.hpp"

namespace sprat::engine {

namespace {

std::vector<float> floats(const Array<const float>& a) { return {a.data(), a.data() + a.shape(0)}; }

Linear* linear_of(Model& model, int layer, const std::string& name) {
    if (name == "head") return &model.head;
    require(layer >= 0 && layer < model.shape.layers, "no such layer");
    Layer& l = model.layers[static_cast<size_t>(layer)];
    if (name == "qkv") return &l.qkv;
    if (name == "o") return &l.o;
    if (name == "gate_up") return &l.gate_up;
    require(name == "down", "no linear map '" + name + "'");
    return &l.down;
}

void set_linear(Model& model, int layer, const std::string& name, std::vector<std::shared_ptr<Packed>> parts) {
    Linear& linear = *linear_of(model, layer, name);
    const Shape& s = model.shape;
    const int64_t query = int64_t{s.heads} * s.dimension, both = query + 2 * int64_t{s.kv_heads} * s.dimension;
    const int64_t in = name == "o" ? query : name == "down" ? s.inner : s.hidden;
    const int64_t out = name == "qkv"       ? both
                        : name == "gate_up" ? 2 * int64_t{s.inner}
                        : name == "head"    ? s.vocabulary
                                            : s.hidden;
    std::vector<bool> filled(static_cast<size_t>(out));
    int64_t rows = 0;
    for (const auto& part : parts) {
        require(part && part->columns == in, name + ": a matrix has the wrong number of columns");
        for (int64_t r = part->output; r < int64_t{part->output} + part->rows; ++r, ++rows) {
            require(r < out && !filled[static_cast<size_t>(r)], name + ": rows that do not fit its outputs");
            filled[static_cast<size_t>(r)] = true;
        }
    }
    require(rows == out, name + ": outputs that no row gives");
    linear.parts = std::move(parts);
    linear.outputs = static_cast<int>(out);
}

void set_vector(Model& model, int layer, const std::string& name, const Array<const float>& values) {
    const Shape& s = model.shape;
    const auto check = [&](int64_t expected) {
        require(static_cast<int64_t>(values.shape(0)) == expected, name + ": a vector of the wrong length");
    };
    const auto hidden = [&](std::vector<float>& to) {
        check(s.hidden);
        to = floats(values);
    };
    if (name == "final_norm") return hidden(model.final_norm);
    if (name.ends_with("_bias")) {
        Linear& linear = *linear_of(model, layer, name.substr(0, name.size() - 5));
        require(linear.outputs > 0, name + ": its map is not there yet");
        check(linear.outputs);
        linear.bias = floats(values);
        return;
    }
    require(layer >= 0 && layer < s.layers, "no such layer");
    Layer& l = model.layers[static_cast<size_t>(layer)];
    if (name == "input_norm") return hidden(l.input_norm);
    if (name == "post_attention_norm") return hidden(l.post_attention_norm);
    if (name == "mlp_norm") return hidden(l.mlp_norm);
    if (name == "post_mlp_norm") return hidden(l.post_mlp_norm);
    require(name == "q_norm" || name == "k_norm", "no vector '" + name + "'");
    check(s.dimension);
    (name == "q_norm" ? l.q_norm : l.k_norm) = floats(values);
}

void set_layer(Model& model, int layer, int window, int rope) {
    require(layer >= 0 && layer < model.shape.layers && window >= 0 && rope >= 0 &&
                static_cast<size_t>(rope) < model.ropes.size(),
            "a layer's window or rope is out of range");
    model.layers[static_cast<size_t>(layer)].window = window;
    model.layers[static_cast<size_t>(layer)].rope = rope;
}

void set_embedding(Model& model, std::shared_ptr<Packed> packed) {
    require(packed && packed->columns == model.shape.hidden && packed->rows == model.shape.vocabulary &&
                packed->output == 0,
            "embedding: the wrong shape");
    model.embedding = std::move(packed);
}

void set_ngrams(Model& model, std::shared_ptr<Packed> packed, int order) {
    require(packed && packed->rows > 0 && packed->columns <= model.shape.hidden && packed->output == 0 &&
                (order == 2 || order == 3),
            "ngrams: the wrong shape");
    model.ngrams = {std::move(packed), order};
}

// Throws where something is missing; a model must pass before its first step.
void check_complete(const Model& m) {
    bool good = m.embedding && m.head.outputs && !m.final_norm.empty() && !m.ropes.empty();
    for (const Layer& l : m.layers)
        good = good && l.qkv.outputs && l.o.outputs && l.gate_up.outputs && l.down.outputs && !l.input_norm.empty() &&
               !l.mlp_norm.empty();
    require(good, "the model is not complete");
}

void step(Model& model, const std::vector<Cache*>& caches, const std::vector<Array<const int32_t>>& ids, bool all,
          const Matrix<float>& out) {
    check_complete(model);
    require(caches.size() == ids.size(), "as many id lists as sessions");
    std::vector<Part> parts;
    size_t rows = 0;
    for (size_t i = 0; i < caches.size(); ++i) {
        require(caches[i] && ids[i].is_valid(), "a session or its ids that are not there");
        require(ids[i].shape(0) < (size_t{1} << 30), "too many tokens");
        require(caches[i]->layers() == model.shape.layers && caches[i]->heads() == model.shape.kv_heads &&
                    caches[i]->dimension() == model.shape.dimension,
                "a session of another model");
        parts.push_back({caches[i], ids[i].data(), static_cast<int>(ids[i].shape(0))});
        rows += all ? ids[i].shape(0) : 1;
    }
    require(out.shape(0) == rows && out.shape(1) == static_cast<size_t>(model.shape.vocabulary),
            "out has the wrong shape");
    nb::gil_scoped_release release;
    const std::lock_guard lock(model.mutex());
    model.step(parts, all, out.data());
}

int whole(const nb::dict& d, const char* key, int least, int most) {
    require(d.contains(key), std::string(key) + " is missing");
    const int64_t value = nb::cast<int64_t>(d[key]);
    require(value >= least && value <= most, std::string(key) + " is out of range");
    return static_cast<int>(value);
}

Shape shape_of(const nb::dict& d) {
    Shape s;
    s.layers = whole(d, "layers", 1, 4096);
    s.hidden = whole(d, "hidden", 1, 1 << 20);
    s.heads = whole(d, "heads", 1, 1 << 16);
    s.kv_heads = whole(d, "kv_heads", 1, s.heads);
    require(s.heads % s.kv_heads == 0, "heads is no multiple of kv_heads");
    s.dimension = whole(d, "dimension", 2, kMaxDimension);
    require(s.dimension % 2 == 0, "dimension is odd");
    s.inner = whole(d, "inner", 1, 1 << 22);
    s.vocabulary = whole(d, "vocabulary", 1, 1 << 26);
    s.eps = nb::cast<float>(d["eps"]);
    s.embed_scale = nb::cast<float>(d["embed_scale"]);
    s.softcap = nb::cast<float>(d["softcap"]);
    s.attention_scale = nb::cast<float>(d["attention_scale"]);
    s.gelu = nb::cast<bool>(d["gelu"]);
    return s;
}

// Bytes of the linear maps, and of the head, each as streamed for one token.
std::pair<size_t, size_t> layout_bytes(const Model& m) {
    size_t maps = 0;
    for (const Layer& l : m.layers) maps += l.qkv.bytes() + l.o.bytes() + l.gate_up.bytes() + l.down.bytes();
    return {maps, m.head.bytes()};
}

}  // namespace

void register_model(nb::module_& m) {
    nb::class_<Model>(m, "Model")
        .def("__init__",
             [](Model* model, const nb::dict& shape, int threads, const std::string& kernel, bool exact) {
                 require(threads >= 1 && threads <= 1024, "threads must be 1..1024");
                 new (model) Model(shape_of(shape), threads, choose_kernel(kernel), exact);
             })
        .def("add_rope",
             [](Model& model, const Array<const float>& frequency, float factor) {
                 require(frequency.shape(0) == static_cast<size_t>(model.shape.dimension) / 2, "rope: wrong length");
                 model.ropes.push_back({floats(frequency), factor});
             })
        .def("set_layer", &set_layer)
        .def("set_linear", &set_linear)
        .def("set_vector", &set_vector)
        .def("set_embedding", &set_embedding)
        .def("set_ngrams", &set_ngrams)
        .def("step", &step)
        .def_prop_ro("threads", &Model::threads)
        .def_prop_ro("kernel", &Model::kernel)
        .def_prop_ro("bytes", [](const Model& model) {
            const auto [maps, head] = layout_bytes(model);
            const auto bytes = [](const auto& table) { return table ? table->bytes() : 0; };
            return nb::make_tuple(maps, head, bytes(model.embedding) + bytes(model.ngrams.table));
        });
}

}  // namespace sprat::engine
