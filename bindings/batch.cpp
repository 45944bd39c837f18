#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>

#include "session.h"

namespace kve::python {
namespace {

using Handle = std::shared_ptr<SessionHandle>;

// The right to use several sessions; that one is named twice is for the engine to refuse.
class SessionUses {
 public:
  void add(SessionHandle& handle) {
    if (std::ranges::find(held_, &handle) != held_.end()) return;
    uses_.emplace_back(handle);
    held_.push_back(&handle);
  }

 private:
  std::deque<SessionUse> uses_;
  std::vector<SessionHandle*> held_;
};

py::list forward_many(const std::vector<Handle>& sessions, const std::vector<py::object>& tokens,
                      bool all_logits, const py::object& progress) {
  if (sessions.size() != tokens.size()) {
    throw ConfigError(message("batch: expected tokens for each of ", sessions.size(),
                              " sessions, found ", tokens.size()));
  }
  std::vector<std::vector<Token>> ids;
  for (const py::object& each : tokens) ids.push_back(token_list(each));
  PythonProgress watcher(progress);
  SessionUses uses;
  std::vector<BatchInput> inputs;
  for (size_t i = 0; i < sessions.size(); ++i) {
    uses.add(*sessions[i]);
    ++sessions[i]->changes;
    inputs.push_back({&sessions[i]->session, ids[i], all_logits});
  }
  std::vector<std::shared_ptr<const Logits>> logits;
  try {
    const py::gil_scoped_release release;
    logits = forward_batch(inputs, watcher.function());
  } catch (const CancelledError&) {
    watcher.rethrow();
    throw;
  }
  watcher.rethrow();
  py::list views;
  for (const auto& each : logits) views.append(logits_view(each));
  return views;
}

// Keeps the sessions of its sequences alive, and notices when others use them.
class BatchHandle {
 public:
  explicit BatchHandle(std::shared_ptr<Model> model) : batch_(std::move(model)) {}

  int add(const Handle& session, const py::object& prompt, const OptionsHandle& options) {
    const std::vector<Token> tokens = token_list(prompt);
    const auto lock = alone();
    const SessionUse use(*session);
    const int id = batch_.add(*use, tokens, options.options);
    held_[id] = {session, ++session->changes};
    return id;
  }

  std::vector<std::pair<int, Piece>> step() {
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    const auto lock = alone();
    SessionUses uses;
    for (const auto& [id, held] : held_) {
      if (!batch_.finish_reason(id).empty()) continue;
      uses.add(*held.session);
      if (held.changes != held.session->changes) {
        throw ConfigError(message("sequence ", id,
                                  ": expected its session as the last step left it, found it used "
                                  "by another call"));
      }
    }
    std::vector<std::pair<int, Piece>> pieces;
    const py::gil_scoped_release release;
    for (const auto& [id, piece] : batch_.step()) pieces.emplace_back(id, piece);
    return pieces;
  }

  void remove(int id) {
    const auto lock = alone();
    batch_.remove(id);
    held_.erase(id);
  }
  // For questions, which nobody may ask while another thread is at work.
  template <class Ask>
  auto ask(const Ask& question) {
    const auto lock = alone();
    return question(batch_);
  }

 private:
  std::unique_lock<std::mutex> alone() {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) throw ConfigError("batch: expected one caller at a time, found another at work");
    return lock;
  }
  struct Held {
    Handle session;
    uint64_t changes = 0;
  };

  std::mutex mutex_;
  BatchGeneration batch_;
  std::map<int, Held> held_;
};

py::object finish_reason(BatchHandle& self, int id) {
  const auto reason = self.ask([id](const auto& batch) { return batch.finish_reason(id); });
  return reason.empty() ? py::object(py::none()) : py::object(py::str(reason));
}

}  // namespace

void bind_batch(py::module_& module) {
  module.def("forward_batch", &forward_many, py::arg("sessions"), py::arg("tokens"),
             py::arg("all_logits") = false, py::arg("progress") = py::none(),
             "Session.forward() of several sessions at once; see Model.forward_batch().");
  py::class_<BatchHandle> batch(
      module, "BatchGeneration",
      R"(Several answers of one model, decoded together; see Model.generate_batch().

Sequences may be added and removed between steps. One thread at a time.)");
  batch.def(py::init<std::shared_ptr<Model>>(), py::arg("model"));
  batch.def("add", &BatchHandle::add, py::arg("session"), py::arg("prompt"), py::arg("options"),
            R"(Adds an answer to `prompt` (token ids) that goes on in `session`; returns its number.

Raises ConfigError (options, an empty prompt in an empty session), CapacityError (a prompt longer
than the context).)");
  batch.def("step", &BatchHandle::step,
            R"(Reads more of the prompts and decodes one token of every sequence that is ready.

Returns the pieces, with the numbers of their sequences. A sequence that fails ends with the
finish_reason 'error'; the others go on.)");
  batch.def("remove", &BatchHandle::remove, py::arg("id"),
            "Forgets a sequence, whether it has ended or not.");
  batch.def_property_readonly(
      "active",
      [](BatchHandle& self) { return self.ask([](const auto& b) { return b.active(); }); },
      "Number of sequences that have not ended.");
  batch.def("finish_reason", &finish_reason, py::arg("id"),
            "None while going on, 'stop', 'length' or 'error'.");
  batch.def(
      "error",
      [](BatchHandle& self, int id) {
        return text_str(self.ask([id](const auto& b) { return b.error(id); }));
      },
      py::arg("id"), "What went wrong when the finish_reason is 'error', else ''.");
  batch.def_property_readonly(
      "prompt_seconds",
      [](BatchHandle& self) { return self.ask([](const auto& b) { return b.prompt_seconds(); }); },
      "Time spent reading prompts.");
  batch.def_property_readonly(
      "decode_seconds",
      [](BatchHandle& self) { return self.ask([](const auto& b) { return b.decode_seconds(); }); },
      "Time spent sampling and decoding.");
}

}  // namespace kve::python
