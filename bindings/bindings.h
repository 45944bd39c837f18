// bindings/: the engine's classes as Python sees them. One file per class and no logic: whatever
// decides something is in the engine, or in python/kvengine where Python is the better language.
//
// The interpreter lock is released around everything that computes or touches a disk.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "kvengine.h"

namespace kve::python {

namespace py = pybind11;

void bind_errors(py::module_& module);
void bind_formats(py::module_& module);
void bind_gguf(py::module_& module);
void bind_tokenizer(py::module_& module);
void bind_model(py::module_& module);
void bind_cache(py::module_& module);
void bind_session(py::module_& module);
void bind_generation(py::module_& module);
void bind_batch(py::module_& module);

// The bytes of a str (as UTF-8; lone surrogates raise UnicodeEncodeError) or of a bytes object.
std::string text_bytes(const py::object& text);
// The inverse of text_str(), for names that came from a file.
std::string str_bytes(const py::str& text);
// A str; bytes that are not UTF-8 become lone surrogates, as in file names ("surrogateescape").
py::str text_str(std::string_view bytes);
// By its name, "Q4_K". Throws ConfigError.
const WeightFormat& find_weight_format(std::string_view name);
// From a sequence of ints or a one-dimensional integer array. Throws ConfigError.
std::vector<Token> token_list(const py::object& tokens);

// A Progress callback for one call. Handles signals, so that Ctrl-C ends a long call, and calls a
// Python function (or None) that may return False to cancel.
class PythonProgress {
 public:
  explicit PythonProgress(py::object callback) : callback_(std::move(callback)) {}

  Progress function() {
    return [this](int64_t done, int64_t total) { return report(done, total); };
  }
  // After the call, whether it was cancelled or came to its end: throws what Python raised.
  void rethrow() {
    if (raised_) std::rethrow_exception(raised_);
  }

 private:
  bool report(int64_t done, int64_t total);

  py::object callback_;
  std::exception_ptr raised_;
};

}  // namespace kve::python
