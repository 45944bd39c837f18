#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "bindings.h"

namespace kve::python {
namespace {

// A tensor together with the file that its bytes are in.
struct Tensor {
  std::shared_ptr<GgufFile> file;
  const TensorInfo* info;
};

py::object scalar(const MetaValue& value) {
  switch (value.type()) {
    case MetaType::string:
      return text_str(value.as_string());
    case MetaType::boolean:
      return py::bool_(value.as_bool());
    case MetaType::f32:
    case MetaType::f64:
      return py::float_(value.as_double());
    case MetaType::u64:
      return py::int_(value.as_uint64());
    default:
      return py::int_(value.as_int64());
  }
}

// Doubles one by one: MetaValue hands arrays out as float.
py::list doubles(std::span<const std::byte> payload) {
  py::list list;
  for (size_t at = 0; at + sizeof(double) <= payload.size(); at += sizeof(double)) {
    double value;
    std::memcpy(&value, payload.data() + at, sizeof(value));
    list.append(value);
  }
  return list;
}

// Unsigned 64-bit integers one by one: MetaValue hands integers out as int64_t.
py::list unsigned_integers(std::span<const std::byte> payload) {
  py::list list;
  for (size_t at = 0; at + sizeof(uint64_t) <= payload.size(); at += sizeof(uint64_t)) {
    uint64_t value;
    std::memcpy(&value, payload.data() + at, sizeof(value));
    list.append(value);
  }
  return list;
}

py::object python_value(const MetaValue& value) {
  if (!value.is_array()) return scalar(value);
  py::list list;
  switch (value.element_type()) {
    case MetaType::string:
      for (const std::string_view text : value.strings()) list.append(text_str(text));
      return list;
    case MetaType::boolean:
      for (const int64_t number : value.integers()) list.append(py::bool_(number != 0));
      return list;
    case MetaType::f32:
      for (const float number : value.floats()) list.append(number);
      return list;
    case MetaType::f64:
      return doubles(value.payload());
    case MetaType::u64:
      return unsigned_integers(value.payload());
    default:
      for (const int64_t number : value.integers()) list.append(number);
      return list;
  }
}

const MetaValue* find(const GgufFile& file, const py::str& key) {
  return file.metadata().find(str_bytes(key));
}
const MetaValue& require(const GgufFile& file, const py::str& key) {
  const MetaValue* value = find(file, key);
  if (!value) throw py::key_error(std::string(py::repr(key)));
  return *value;
}

py::list tensors(const std::shared_ptr<GgufFile>& file) {
  py::list list;
  for (const TensorInfo& info : file->tensors()) list.append(Tensor{file, &info});
  return list;
}

py::array_t<uint8_t> tensor_data(const py::object& self) {
  const auto& tensor = self.cast<const Tensor&>();
  py::array_t<uint8_t> view({static_cast<py::ssize_t>(tensor.info->bytes)}, {1},
                            reinterpret_cast<const uint8_t*>(tensor.info->data), self);
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

py::array_t<float> tensor_values(const Tensor& tensor) {
  const TensorInfo& info = *tensor.info;
  const std::vector<py::ssize_t> shape(info.shape.rbegin(), info.shape.rend());
  py::array_t<float> values(shape);
  float* out = values.mutable_data();
  const py::gil_scoped_release release;
  format(info.type).decode(info.data, out, info.elements());
  return values;
}

template <class T>
void set_number(GgufWriter& writer, const std::string& key, const py::object& value) {
  writer.set(key, value.cast<T>());
}

void set(GgufWriter& writer, const py::str& name, const py::object& value,
         const std::string& type) {
  using Setter = void (*)(GgufWriter&, const std::string&, const py::object&);
  static const std::pair<std::string_view, Setter> kSetters[] = {
      {"u8", set_number<uint8_t>},   {"i8", set_number<int8_t>},    {"u16", set_number<uint16_t>},
      {"i16", set_number<int16_t>},  {"u32", set_number<uint32_t>}, {"i32", set_number<int32_t>},
      {"u64", set_number<uint64_t>}, {"i64", set_number<int64_t>},  {"f32", set_number<float>},
      {"f64", set_number<double>},   {"bool", set_number<bool>},
  };
  const std::string key = str_bytes(name);
  if (type == "string") {
    const bool is_str = py::isinstance<py::str>(value);
    return writer.set(key, is_str ? str_bytes(value) : text_bytes(value));
  }
  for (const auto& [known, setter] : kSetters) {
    if (known == type) return setter(writer, key, value);
  }
  throw ConfigError(
      message("type: expected u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, bool "
              "or string, found '",
              type, "'"));
}

// Fills a tensor from a buffer, or from what a function returns when the tensor is written.
GgufWriter::Producer producer(const std::string& name, py::object source) {
  return [name, source = std::move(source)](std::span<std::byte> out) {
    const py::gil_scoped_acquire gil;
    const py::object data = PyCallable_Check(source.ptr()) != 0 ? source() : source;
    if (!PyObject_CheckBuffer(data.ptr())) {
      throw py::type_error("tensor " + name + ": expected a buffer, found " +
                           std::string(py::str(py::type::of(data).attr("__name__"))));
    }
    const py::buffer_info info = py::reinterpret_borrow<py::buffer>(data).request();
    const auto bytes = static_cast<size_t>(info.size * info.itemsize);
    if (!PyBuffer_IsContiguous(info.view(), 'C') || bytes != out.size()) {
      throw ConfigError(message("tensor ", name, ": expected ", out.size(),
                                " contiguous bytes, found a buffer of ", bytes));
    }
    std::memcpy(out.data(), info.ptr, bytes);
  };
}

void bind_file(py::module_& module) {
  py::class_<GgufFile, std::shared_ptr<GgufFile>> file(
      module, "GgufFile",
      "An opened GGUF file: its metadata as a read-only mapping, and its tensors.");
  file.def(py::init([](const std::filesystem::path& path) {
             const py::gil_scoped_release release;
             return std::const_pointer_cast<GgufFile>(GgufFile::open(path));
           }),
           py::arg("path"),
           R"(Opens and checks a file (of a split model: its first part).

Raises IoError, FormatError, UnsupportedError.)");
  file.def("__getitem__", [](const GgufFile& self, const py::str& key) {
    return python_value(require(self, key));
  });
  file.def(
      "get",
      [](const GgufFile& self, const py::str& key, const py::object& fallback) {
        const MetaValue* value = find(self, key);
        return value ? python_value(*value) : fallback;
      },
      py::arg("key"), py::arg("default") = py::none(), "The value of a key, or `default`.");
  file.def("__contains__",
           [](const GgufFile& self, const py::str& key) { return find(self, key) != nullptr; });
  file.def("__len__", [](const GgufFile& self) { return self.metadata().size(); });
  file.def(
      "keys",
      [](const GgufFile& self) {
        py::list keys;
        for (const MetaValue& value : self.metadata()) keys.append(text_str(value.key()));
        return keys;
      },
      "Metadata keys in file order.");
  file.def("__iter__", [](const py::object& self) { return py::iter(self.attr("keys")()); });
  file.def(
      "type_name",
      [](const GgufFile& self, const py::str& key) { return require(self, key).type_name(); },
      py::arg("key"), "How a value is stored: 'u32', 'string', 'array of 49152 string'.");
  file.def_property_readonly("tensors", &tensors, "All tensors in file order.");
  file.def(
      "tensor",
      [](const std::shared_ptr<GgufFile>& self, const py::str& name) {
        return Tensor{self, &self->tensor(str_bytes(name))};
      },
      py::arg("name"), "One tensor. Raises FormatError if there is none of that name.");
  file.def_property_readonly("path", &GgufFile::path);
  file.def_property_readonly("version", &GgufFile::version, "2 or 3.");
  file.def_property_readonly("file_bytes", &GgufFile::file_bytes, "Of all parts.");
  file.def_property_readonly("alignment", &GgufFile::alignment, "Of tensor data, in bytes.");
  file.def_property_readonly("parts", &GgufFile::parts, "1 unless the model is split.");
}

void bind_tensor(py::module_& module) {
  module.def(
      "hash64",
      [](const py::bytes& data, uint64_t seed) {
        const std::string_view text = data;
        return hash64(std::as_bytes(std::span(text.data(), text.size())), seed);
      },
      py::arg("data"), py::arg("seed") = 0, "The checksum of this engine's own files.");
  py::class_<Tensor>(module, "Tensor", "One tensor of a GgufFile.")
      .def_property_readonly("name", [](const Tensor& self) { return text_str(self.info->name); })
      .def_property_readonly(
          "type", [](const Tensor& self) { return std::string(format(self.info->type).name); },
          "Weight type: 'Q4_K'.")
      .def_property_readonly(
          "shape", [](const Tensor& self) { return self.info->shape; },
          "In GGUF's order: the row length comes first.")
      .def_property_readonly("bytes", [](const Tensor& self) { return self.info->bytes; })
      .def_property_readonly("elements", [](const Tensor& self) { return self.info->elements(); })
      .def_property_readonly("data", &tensor_data,
                             "The stored bytes: read-only uint8 ndarray view of the file.")
      .def("decode", &tensor_values,
           "The values: float32 ndarray in NumPy's order (the row length comes last).")
      .def("__repr__", [](const Tensor& self) {
        return text_str(message("<Tensor ", self.info->name, " ", format(self.info->type).name, " ",
                                self.info->shape_string(), ">"));
      });
}

void bind_writer(py::module_& module) {
  py::class_<GgufWriter> writer(module, "GgufWriter",
                                "Collects metadata and tensors, then writes a GGUF file.");
  writer.def(py::init<>());
  writer.def_static(
      "copy_of", [](const std::shared_ptr<GgufFile>& file) { return GgufWriter::copy_of(file); },
      py::arg("file"),
      "Everything in `file`; written unchanged, it is the same file. Splits become one file.");
  writer.def("set", &set, py::arg("key"), py::arg("value"), py::arg("type"),
             R"(Adds a key or replaces its value.

type: 'u8', 'i8', 'u16', 'i16', 'u32', 'i32', 'u64', 'i64', 'f32', 'f64', 'bool' or 'string'.
Raises ConfigError.)");
  writer.def(
      "copy",
      [](GgufWriter& self, const py::str& key, const GgufFile& file) {
        self.set_value(str_bytes(key), require(file, key));
      },
      py::arg("key"), py::arg("file"), "Adds a key with the value it has in another file.");
  writer.def(
      "erase", [](GgufWriter& self, const py::str& key) { self.erase(str_bytes(key)); },
      py::arg("key"), "Removes a key, if it is there.");
  writer.def(
      "add_tensor",
      [](GgufWriter& self, const py::str& name, const std::string& type, std::vector<int64_t> shape,
         py::object data) {
        const std::string bytes = str_bytes(name);
        self.add_tensor(bytes, find_weight_format(type).type, std::move(shape),
                        producer(bytes, std::move(data)));
      },
      py::arg("name"), py::arg("type"), py::arg("shape"), py::arg("data"),
      R"(Adds a tensor.

type: a name from weight_formats(). shape: in GGUF's order, the row length first.
data: a buffer with the stored bytes (see encode_weights), or a function that returns one; it is
called once per write, so that tensors need not all be in memory.
Raises ConfigError (here, or when writing for a wrong number of bytes).)");
  writer.def(
      "write",
      [](const GgufWriter& self, const std::filesystem::path& path) {
        const py::gil_scoped_release release;
        self.write(path);
      },
      py::arg("path"), "Writes the file atomically. Raises IoError.");
}

}  // namespace

void bind_gguf(py::module_& module) {
  bind_tensor(module);
  bind_file(module);
  bind_writer(module);
}

}  // namespace kve::python
