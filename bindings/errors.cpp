// kve::Error and its subclasses as Python exceptions that are also what Python programmers catch.

#include "bindings.h"

namespace kve::python {
namespace {

// Set once, when the module is made; they live as long as the interpreter.
struct ErrorTypes {
  PyObject* error = nullptr;
  PyObject* format = nullptr;
  PyObject* unsupported = nullptr;
  PyObject* config = nullptr;
  PyObject* capacity = nullptr;
  PyObject* device = nullptr;
  PyObject* io = nullptr;
  PyObject* cancelled = nullptr;
};
ErrorTypes types;

PyObject* new_type(py::module_& module, const char* name, const char* doc, PyObject* base) {
  const std::string full_name = std::string("kvengine.") + name;
  py::tuple bases = py::make_tuple(py::handle(base));
  if (types.error) bases = py::make_tuple(py::handle(types.error), py::handle(base));
  PyObject* type = PyErr_NewExceptionWithDoc(full_name.c_str(), doc, bases.ptr(), nullptr);
  if (!type) throw py::error_already_set();
  module.attr(name) = py::handle(type);
  return type;
}

void raise(PyObject* type, const char* what) {
  const py::str text = py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(
      what, static_cast<Py_ssize_t>(std::string_view(what).size()), "backslashreplace"));
  PyErr_SetObject(type, text.ptr());
}

void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const FormatError& error) {
    raise(types.format, error.what());
  } catch (const UnsupportedError& error) {
    raise(types.unsupported, error.what());
  } catch (const ConfigError& error) {
    raise(types.config, error.what());
  } catch (const CapacityError& error) {
    raise(types.capacity, error.what());
  } catch (const DeviceError& error) {
    raise(types.device, error.what());
  } catch (const IoError& error) {
    raise(types.io, error.what());
  } catch (const CancelledError& error) {
    raise(types.cancelled, error.what());
  } catch (const Error& error) {
    raise(types.error, error.what());
  }
}

}  // namespace

void bind_errors(py::module_& module) {
  types.error = new_type(module, "Error",
                         "Base of everything the engine raises: one sentence that names the thing, "
                         "what was expected and what was found.",
                         PyExc_Exception);
  types.format = new_type(module, "FormatError", "A file is malformed.", PyExc_ValueError);
  types.unsupported = new_type(module, "UnsupportedError",
                               "A well-formed input asks for something this engine does not have.",
                               PyExc_NotImplementedError);
  types.config = new_type(module, "ConfigError", "A bad option, prompt, cache spec or argument.",
                          PyExc_ValueError);
  types.capacity =
      new_type(module, "CapacityError", "Context or memory is exhausted.", PyExc_MemoryError);
  types.device =
      new_type(module, "DeviceError", "A compute device failed or is missing.", PyExc_RuntimeError);
  types.io =
      new_type(module, "IoError", "The operating system refused to read or write.", PyExc_OSError);
  types.cancelled =
      new_type(module, "CancelledError", "A progress callback returned False.", PyExc_RuntimeError);
  py::register_exception_translator(&translate);
}

}  // namespace kve::python
