// Weight types: decode and encode blocks, for tests against other implementations and research.

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings.h"

namespace kve::python {

const WeightFormat& find_weight_format(std::string_view name) {
  std::string known;
  for (const WeightFormat& format : weight_formats()) {
    if (format.name == name) return format;
    known += (known.empty() ? "" : ", ") + std::string(format.name);
  }
  throw ConfigError(
      message("weight type: expected one of ", known, ", found '", name.substr(0, 40), "'"));
}

namespace {

py::array_t<float> decode_weights(std::string_view type, const py::buffer& data) {
  const WeightFormat& format = find_weight_format(type);
  const py::buffer_info info = data.request();
  if (!PyBuffer_IsContiguous(info.view(), 'C')) {
    throw ConfigError("data: expected contiguous bytes, found a strided buffer");
  }
  const int64_t bytes = info.size * info.itemsize;
  if (bytes % format.block_bytes != 0) {
    throw ConfigError(message("data: expected a multiple of ", format.block_bytes, " bytes of ",
                              format.name, ", found ", bytes));
  }
  const int64_t n = bytes / format.block_bytes * format.block_values;
  py::array_t<float> values(n);
  float* out = values.mutable_data();
  const py::gil_scoped_release release;
  format.decode(static_cast<const std::byte*>(info.ptr), out, n);
  return values;
}

py::bytes encode_weights(std::string_view type,
                         const py::array_t<float, py::array::c_style>& values) {
  const WeightFormat& format = find_weight_format(type);
  if (!format.encode) {
    throw UnsupportedError(message(format.name,
                                   ": expected a type that can be written, found one "
                                   "that is only read"));
  }
  const auto n = static_cast<int64_t>(values.size());
  if (n % format.block_values != 0) {
    throw ConfigError(message("values: expected a multiple of ", format.block_values, " for ",
                              format.name, ", found ", n));
  }
  std::string bytes(row_bytes(format.type, n), '\0');
  {
    const float* data = values.data();
    const py::gil_scoped_release release;
    format.encode(data, reinterpret_cast<std::byte*>(bytes.data()), n);
  }
  return py::bytes(bytes);
}

}  // namespace

void bind_formats(py::module_& module) {
  py::class_<WeightFormat>(module, "WeightFormat", "A weight type of GGUF files.")
      .def_property_readonly(
          "name", [](const WeightFormat& f) { return std::string(f.name); },
          "As the gguf package spells it: 'Q4_K'.")
      .def_readonly("block_values", &WeightFormat::block_values, "Values per block.")
      .def_readonly("block_bytes", &WeightFormat::block_bytes, "Bytes per block.")
      .def_property_readonly(
          "can_encode", [](const WeightFormat& f) { return f.encode != nullptr; },
          "Whether encode_weights() writes this type.")
      .def("__repr__",
           [](const WeightFormat& f) { return message("<WeightFormat ", f.name, ">"); });

  module.def(
      "weight_formats",
      [] {
        py::list list;
        for (const WeightFormat& format : weight_formats()) {
          list.append(py::cast(&format, py::return_value_policy::reference));
        }
        return list;
      },
      "Every weight type that is read, in order of its number in GGUF files.");
  module.def("decode_weights", &decode_weights, py::arg("type"), py::arg("data"),
             R"(The values of consecutive blocks: float32 ndarray [n].

type: a name from weight_formats(); data: contiguous bytes, a multiple of the block.
Raises ConfigError.)");
  module.def("encode_weights", &encode_weights, py::arg("type"), py::arg("values"),
             R"(Blocks that hold the values of a float32 array (any shape, C order), as bytes.

The values have to be finite. Raises ConfigError, UnsupportedError (types that are only read).)");
}

}  // namespace kve::python
