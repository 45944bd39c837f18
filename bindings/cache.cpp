#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "session.h"

namespace kve::python {
namespace {

// The cache of a session, which it keeps alive.
struct CacheHandle {
  std::shared_ptr<SessionHandle> session;
};

double ratio(const CacheStats& stats) {
  return stats.bytes == 0 ? 0
                          : static_cast<double>(stats.f16_bytes) / static_cast<double>(stats.bytes);
}

py::dict as_dict(const CacheStats& stats) {
  using namespace py::literals;
  return py::dict("spec"_a = stats.spec, "bytes"_a = stats.bytes, "f16_bytes"_a = stats.f16_bytes,
                  "peak_bytes"_a = stats.peak_bytes, "bits_per_value"_a = stats.bits_per_value,
                  "tokens_seen"_a = stats.tokens_seen, "tokens_kept"_a = stats.tokens_kept,
                  "path"_a = stats.path, "codes"_a = stats.codes, "scales"_a = stats.scales,
                  "bases"_a = stats.bases, "tail"_a = stats.tail, "meta"_a = stats.meta,
                  "offloaded"_a = stats.offloaded, "on_device"_a = stats.on_device,
                  "spilled"_a = stats.spilled);
}

int checked_index(const char* what, int index, size_t size) {
  if (index < 0 || static_cast<size_t>(index) >= size) {
    throw ConfigError(
        message(what, ": expected 0 to ", static_cast<int64_t>(size) - 1, ", found ", index));
  }
  return index;
}

using ReadSide = void (KvCache::*)(int, int, Mat) const;

py::array_t<float> read_side(const CacheHandle& self, int layer, int head, ReadSide read,
                             int LayerShape::* dim) {
  const SessionUse session(*self.session);
  session->drop_ahead();  // a generation then computes it again
  const KvCache& cache = session->cache();
  checked_index("layer", layer, cache.layers().size());
  const LayerShape& shape = cache.layers()[static_cast<size_t>(layer)];
  checked_index("head", head, static_cast<size_t>(shape.n_kv_heads));
  const int n = cache.rows(layer, head);
  py::array_t<float> rows({n, shape.*dim});
  const Mat out(rows.mutable_data(), n, shape.*dim);
  const py::gil_scoped_release release;
  (cache.*read)(layer, head, out);
  return rows;
}

py::array_t<int32_t> read_positions(const CacheHandle& self, int layer, int head) {
  const SessionUse session(*self.session);
  session->drop_ahead();
  const KvCache& cache = session->cache();
  checked_index("layer", layer, cache.layers().size());
  checked_index("head", head,
                static_cast<size_t>(cache.layers()[static_cast<size_t>(layer)].n_kv_heads));
  py::array_t<int32_t> positions(cache.rows(layer, head));
  cache.read_positions(layer, head,
                       {positions.mutable_data(), static_cast<size_t>(positions.size())});
  return positions;
}

std::vector<double> query_squares(const CacheHandle& self, int layer, int head) {
  const SessionUse session(*self.session);
  session->drop_ahead();
  const KvCache& cache = session->cache();
  checked_index("layer", layer, cache.layers().size());
  const LayerShape& shape = cache.layers()[static_cast<size_t>(layer)];
  checked_index("head", head, static_cast<size_t>(shape.n_kv_heads));
  if (!cache.wants_queries(layer)) {
    throw ConfigError(message("cache ", cache.spec().str(),
                              ": expected keys of klt that wait for their fit, found none"));
  }
  return cache.mean_squared_queries(layer, head);
}

void bind_stats(py::module_& module) {
  py::class_<CacheStats>(module, "CacheStats",
                         "What a cache costs, in bytes that were really allocated.")
      .def_readonly("spec", &CacheStats::spec, "Canonical cache spec.")
      .def_readonly("bytes", &CacheStats::bytes, "codes + scales + bases + tail + meta.")
      .def_readonly("total", &CacheStats::bytes, "The same as bytes.")
      .def_readonly("codes", &CacheStats::codes, "Coded values in pages.")
      .def_readonly("scales", &CacheStats::scales, "Their scales and offsets.")
      .def_readonly("bases", &CacheStats::bases, "Projections shared by pages.")
      .def_readonly("tail", &CacheStats::tail, "Uncompressed recent rows.")
      .def_readonly("meta", &CacheStats::meta, "Page tables and descriptors.")
      .def_readonly("offloaded", &CacheStats::offloaded,
                    "Blocks that lie in a file (infllm); not part of bytes.")
      .def_readonly("on_device", &CacheStats::on_device,
                    "Of codes and scales, what lies in a GPU's memory.")
      .def_readonly("spilled", &CacheStats::spilled,
                    "Of codes and scales, what a limit of that memory keeps in the host's.")
      .def_readonly("f16_bytes", &CacheStats::f16_bytes, "The same tokens in f16.")
      .def_readonly("peak_bytes", &CacheStats::peak_bytes,
                    "Most bytes this cache and its forks ever held together.")
      .def_readonly("tokens_seen", &CacheStats::tokens_seen, "Tokens read so far.")
      .def_readonly("tokens_kept", &CacheStats::tokens_kept,
                    "Rows still stored, the most over layers and heads.")
      .def_readonly("bits_per_value", &CacheStats::bits_per_value,
                    "16 * bytes / f16_bytes; 0 for an empty cache.")
      .def_readonly("path", &CacheStats::path,
                    "How attention reads the pages: 'fused' or 'rebuilt'.")
      .def_property_readonly("ratio", &ratio, "f16_bytes / bytes; 0 for an empty cache.")
      .def("as_dict", &as_dict, "The `cache` object of the command line's JSON.")
      .def("__repr__", [](const CacheStats& self) {
        return message("<CacheStats ", self.spec, ": ", self.bytes, " bytes, f16 ", self.f16_bytes,
                       ">");
      });
}

void bind_listing(py::module_& module) {
  py::class_<CacheListing>(module, "CacheListing", "A name that a cache spec may use.")
      .def_readonly("name", &CacheListing::name)
      .def_readonly("kind", &CacheListing::kind, "'codec', 'projector', 'selector' or 'preset'.")
      .def_readonly("spec", &CacheListing::spec, "Canonical spec the name stands for.")
      .def_readonly("parameters", &CacheListing::parameters, "'group=32 (8..128), tail=64'")
      .def_readonly("paper", &CacheListing::paper, "arXiv id, or where the format comes from.")
      .def_readonly("bits_per_value", &CacheListing::bits_per_value,
                    "Of coded rows, scales included.")
      .def("__repr__",
           [](const CacheListing& self) { return message("<CacheListing ", self.spec, ">"); });
  module.def("caches", &list_caches, "Every name of a cache spec: list of CacheListing.");
  module.def(
      "canonical_cache", [](std::string_view spec) { return CacheSpec::parse(spec).str(); },
      py::arg("spec"), "The canonical form of a cache spec. Raises ConfigError.");
}

}  // namespace

void bind_cache(py::module_& module) {
  bind_stats(module);
  bind_listing(module);
  py::class_<CacheHandle>(module, "Cache", "The keys and values of a session.")
      .def(py::init<std::shared_ptr<SessionHandle>>(), py::arg("session"))
      .def(
          "stats", [](const CacheHandle& self) { return SessionUse(*self.session)->cache_stats(); },
          "What it costs now: CacheStats.")
      .def(
          "keys",
          [](const CacheHandle& self, int layer, int head) {
            return read_side(self, layer, head, &KvCache::read_keys, &LayerShape::key_dim);
          },
          py::arg("layer"), py::arg("head"),
          "Keys as attention sees them: new float32 ndarray [tokens kept, head_dim]. Raises "
          "ConfigError.")
      .def(
          "values",
          [](const CacheHandle& self, int layer, int head) {
            return read_side(self, layer, head, &KvCache::read_values, &LayerShape::value_dim);
          },
          py::arg("layer"), py::arg("head"),
          "Values as attention sees them: new float32 ndarray [tokens kept, head_dim]. Raises "
          "ConfigError.")
      .def("positions", &read_positions, py::arg("layer"), py::arg("head"),
           "Positions of the rows of keys() and values(): new int32 ndarray [tokens kept], rising. "
           "Raises ConfigError.")
      .def("query_squares", &query_squares, py::arg("layer"), py::arg("head"),
           "Mean squares of the queries of a kv head, per channel, while keys wait for the fit of "
           "klt: list of head_dim floats. Raises ConfigError.")
      .def_property_readonly(
          "spec",
          [](const CacheHandle& self) { return self.session->session.cache().spec().str(); },
          "Canonical cache spec.");
}

}  // namespace kve::python
