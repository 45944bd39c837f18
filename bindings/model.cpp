#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "bindings.h"

namespace kve::python {
namespace {

std::shared_ptr<Model> load(const std::filesystem::path& path, int threads, const std::string& isa,
                            bool repack, const std::string& device) {
  const py::gil_scoped_release release;
  return Model::load(path, {.device = device, .threads = threads, .isa = isa, .repack = repack});
}

py::list layers(const Model& model) {
  py::list list;
  const std::vector<LayerShape> shapes = model.spec().cache_shape();
  size_t i = 0;
  for (const LayerSpec& layer : model.spec().layers) {
    const AttentionSpec& attention = layer.attention;
    py::dict facts;
    facts["n_heads"] = attention.n_heads;
    facts["n_kv_heads"] = attention.n_kv_heads;
    facts["head_dim"] = attention.head_dim;
    facts["value_dim"] = attention.value_dim;
    facts["window"] = attention.window;
    facts["d_ff"] = layer.ffn.d_ff;
    const std::shared_ptr<const Rotation>& rotation = shapes[i++].rotation;
    facts["key_frequencies"] = rotation == nullptr ? std::vector<double>{} : rotation->frequencies;
    facts["key_pairs_interleaved"] = rotation != nullptr && rotation->interleaved;
    list.append(facts);
  }
  return list;
}

CachePlan plan_cache(Model& model, const std::string& budget, int n_ctx, int n_batch,
                     std::vector<double> damage) {
  if (n_ctx == 0) n_ctx = model.spec().n_ctx;
  const py::gil_scoped_release release;
  const int64_t bytes = parse_budget(budget, model.spec().cache_shape(), n_ctx);
  return model.plan_cache(
      {.n_ctx = n_ctx, .n_batch = n_batch, .budget = bytes, .damage = std::move(damage)});
}

void bind_plan(py::module_& module) {
  py::class_<CachePlan>(module, "CachePlan", "Which codec every layer gets, to stay in a budget.")
      .def_property_readonly(
          "spec", [](const CachePlan& self) { return self.spec.str(); }, "Canonical cache spec.")
      .def_readonly("bytes", &CachePlan::bytes, "The most that will be allocated.")
      .def_property_readonly(
          "layers",
          [](const CachePlan& self) {
            py::list list;
            for (const CachePlan::Layer& layer : self.layers) {
              list.append(py::make_tuple(layer.k, layer.v));
            }
            return list;
          },
          "Per layer: the presets of keys and values.");
}

}  // namespace

void bind_model(py::module_& module) {
  bind_plan(module);
  py::class_<Model, std::shared_ptr<Model>> model(module, "Model",
                                                  "A loaded model: weights and tokenizer.");
  model.def(py::init(&load), py::arg("path"), py::arg("threads") = 0, py::arg("isa") = "",
            py::arg("repack") = true, py::arg("device") = "cpu", R"(Loads a GGUF file.

threads: 0 uses every processor this process may use.
isa: 'scalar', 'avx2', 'avx512', ...; '' uses the best there is.
repack: copy weights to the layout that is read fastest; else they are read from the mapped file.
device: 'cpu', 'cuda' or 'auto': a GPU where there is one, else the CPU (device_note says why).
Raises IoError, FormatError, UnsupportedError, ConfigError, DeviceError, CapacityError.)");
  model.def_property_readonly("path", [](const Model& self) { return self.file().path(); });
  model.def_property_readonly(
      "architecture", [](const Model& self) { return text_str(self.spec().arch); },
      "general.architecture: 'llama', 'gemma3', ...");
  model.def_property_readonly(
      "name", [](const Model& self) { return text_str(self.spec().name); }, "general.name, or ''.");
  model.def_property_readonly("n_layers",
                              [](const Model& self) { return self.spec().layers.size(); });
  model.def_property_readonly(
      "d_model", [](const Model& self) { return self.spec().d_model; }, "Model width.");
  model.def_property_readonly(
      "vocab_size", [](const Model& self) { return self.spec().vocab_size; },
      "Columns of the logits; may exceed the tokenizer's by rows of padding.");
  model.def_property_readonly(
      "n_ctx", [](const Model& self) { return self.spec().n_ctx; },
      "Context length the model was trained for, in tokens.");
  model.def_property_readonly("layers", &layers,
                              "Per layer: a dict of n_heads, n_kv_heads, head_dim, value_dim, "
                              "window (0: none), d_ff, and of the rotary embedding of cached keys "
                              "key_frequencies (radians per position; none: no embedding, or one "
                              "that cannot be undone) and key_pairs_interleaved.");
  model.def_property_readonly(
      "tokenizer",
      [](const std::shared_ptr<Model>& self) {
        // Shares ownership with the model.
        return std::shared_ptr<Tokenizer>(self, const_cast<Tokenizer*>(&self->tokenizer()));
      },
      "The model's Tokenizer.");
  model.def_property_readonly(
      "file",
      [](const std::shared_ptr<Model>& self) {
        return std::shared_ptr<GgufFile>(self, const_cast<GgufFile*>(&self->file()));
      },
      "The GgufFile the model was loaded from.");
  model.def_property_readonly(
      "chat_template", [](const Model& self) { return text_str(self.chat_template()); },
      "The Jinja source that the file carries, or ''.");
  model.def_property_readonly("threads", &Model::threads);
  model.def_property_readonly("repacked_bytes", &Model::repacked_bytes,
                              "Memory of the repacked copies of weights; 0 without.");
  model.def_property_readonly(
      "backend", [](const Model& self) { return std::string(self.backend().name()); },
      "What computes: 'cpu-avx512', ...");
  model.def_property_readonly("device", &Model::device, "'cpu' or 'cuda'.");
  model.def_property_readonly("device_note", &Model::device_note,
                              "Why device 'auto' has become the CPU, a sentence; else ''.");
  model.def("plan_cache", &plan_cache, py::arg("budget"), py::arg("n_ctx") = 0,
            py::arg("n_batch") = 256, py::arg("damage") = std::vector<double>(),
            R"(The best cache that never takes more than a budget: CachePlan.

budget: '64MiB', '1.5 GiB', a number of bytes, or 'bits=3' for every value of n_ctx tokens.
n_ctx: tokens it must hold; 0: what the model was trained for. n_batch: most of them in one pass.
damage: per layer, for keys and for values, what 2 bits cost (kvengine calibrate); none: all alike.
Raises ConfigError (nothing fits), CapacityError.)");
  model.def(
      "cache_warnings",
      [](const Model& self, const std::string& cache) {
        const CacheSpec spec = CacheSpec::parse(cache);
        const py::gil_scoped_release release;
        return self.cache_warnings(spec);
      },
      py::arg("cache"), R"(What a cache is known to do to models like this one.

Returns a sentence for each thing; none as a rule. Raises ConfigError (a bad spec).)");
  model.def_property_readonly("fingerprint", &Model::fingerprint,
                              "Identifies the weights; session files carry it.");
}

}  // namespace kve::python
