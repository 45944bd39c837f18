#include <pybind11/stl.h>

#include <optional>

#include "session.h"

namespace kve::python {
namespace {

// Iterates over the pieces of an answer; keeps the session alive.
class GenerationHandle {
 public:
  GenerationHandle(std::shared_ptr<SessionHandle> session, const py::object& prompt,
                   const OptionsHandle& options, const py::object& progress)
      : session_(std::move(session)), draft_(options.draft) {
    if (draft_ == session_) {
      throw ConfigError("draft: expected another session than the one it guesses for, found it");
    }
    const std::vector<Token> tokens = token_list(prompt);
    PythonProgress watcher(progress);
    const SessionUse use(*session_);
    const std::unique_ptr<SessionUse> draft_use = use_draft();
    changes_ = ++session_->changes;
    try {
      const py::gil_scoped_release release;
      generation_.emplace(*use, tokens, options.options, watcher.function());
    } catch (const CancelledError&) {
      watcher.rethrow();
      throw;
    }
    watcher.rethrow();
  }

  Piece next() {
    if (closed_) throw py::stop_iteration();
    std::optional<Piece> piece;
    {
      const SessionUse use(*session_);
      if (changes_ != session_->changes) {
        throw ConfigError(
            "generation: expected the session as this iterator left it, found it used by another "
            "call");
      }
      const std::unique_ptr<SessionUse> draft_use = use_draft();
      const py::gil_scoped_release release;
      piece = generation_->next();
    }
    if (!piece) throw py::stop_iteration();
    return *std::move(piece);
  }
  void close() {
    closed_ = true;
    if (session_->busy.test_and_set(std::memory_order_acquire)) return;  // its user goes on anyway
    if (changes_ == session_->changes) session_->session.drop_ahead();
    session_->busy.clear(std::memory_order_release);
  }

  py::object finish_reason() const {
    if (!generation_->finish_reason().empty()) return py::str(generation_->finish_reason());
    return closed_ ? py::object(py::str("cancelled")) : py::object(py::none());
  }
  const Generation& get() const { return *generation_; }

 private:
  std::unique_ptr<SessionUse> use_draft() {
    return draft_ ? std::make_unique<SessionUse>(*draft_) : nullptr;
  }

  std::shared_ptr<SessionHandle> session_;
  std::shared_ptr<SessionHandle> draft_;
  std::optional<Generation> generation_;
  uint64_t changes_ = 0;
  bool closed_ = false;
};

OptionsHandle make_options(int max_tokens, float temperature, int top_k, float top_p, float min_p,
                           float typical_p, float repeat_penalty, int repeat_last_n,
                           float presence_penalty, float frequency_penalty, uint64_t seed,
                           std::vector<std::string> stop,
                           std::vector<std::pair<Token, float>> logit_bias, bool ignore_eos,
                           bool render_special, int draft_max,
                           const std::shared_ptr<SessionHandle>& draft) {
  GenerateOptions options;
  options.max_tokens = max_tokens;
  options.sampling.temperature = temperature;
  options.sampling.top_k = top_k;
  options.sampling.top_p = top_p;
  options.sampling.min_p = min_p;
  options.sampling.typical_p = typical_p;
  options.sampling.repeat_penalty = repeat_penalty;
  options.sampling.repeat_last_n = repeat_last_n;
  options.sampling.presence_penalty = presence_penalty;
  options.sampling.frequency_penalty = frequency_penalty;
  options.sampling.seed = seed;
  options.sampling.logit_bias = std::move(logit_bias);
  options.stop = std::move(stop);
  options.ignore_eos = ignore_eos;
  options.render_special = render_special;
  options.draft.max_tokens = draft_max;
  if (draft) options.draft.session = {draft, &draft->session};
  return {std::move(options), draft};
}

void bind_options(py::module_& module) {
  const GenerateOptions defaults;
  const SamplingOptions& sampling = defaults.sampling;
  py::class_<OptionsHandle>(module, "GenerateOptions",
                            "How an answer is drawn and when it ends; see Session.generate().")
      .def(py::init(&make_options), py::kw_only(), py::arg("max_tokens") = defaults.max_tokens,
           py::arg("temperature") = 0.0f, py::arg("top_k") = sampling.top_k,
           py::arg("top_p") = sampling.top_p, py::arg("min_p") = sampling.min_p,
           py::arg("typical_p") = sampling.typical_p,
           py::arg("repeat_penalty") = sampling.repeat_penalty,
           py::arg("repeat_last_n") = sampling.repeat_last_n,
           py::arg("presence_penalty") = sampling.presence_penalty,
           py::arg("frequency_penalty") = sampling.frequency_penalty,
           py::arg("seed") = sampling.seed, py::arg("stop") = std::vector<std::string>(),
           py::arg("logit_bias") = std::vector<std::pair<Token, float>>(),
           py::arg("ignore_eos") = false, py::arg("render_special") = false,
           py::arg("draft_max") = 0, py::arg("draft") = py::none())
      .def_property_readonly("max_tokens",
                             [](const OptionsHandle& self) { return self.options.max_tokens; });
}

void bind_piece(py::module_& module) {
  py::class_<Piece>(module, "Piece", "One step of a generation.")
      .def_readonly("text", &Piece::text,
                    "Complete UTF-8; '' while a character or a possible stop string is incomplete.")
      .def_property_readonly(
          "token",
          [](const Piece& self) -> py::object {
            if (self.token == kNoToken) return py::none();
            return py::int_(self.token);
          },
          "The token's id; None in a last piece that only carries text held back until then.")
      .def_readonly("logprob", &Piece::logprob,
                    "Natural log of the token's probability before sampling options.")
      .def("__repr__", [](const Piece& self) {
        return "<Piece " + std::string(py::repr(text_str(self.text))) + ">";
      });
}

}  // namespace

void bind_generation(py::module_& module) {
  bind_options(module);
  bind_piece(module);
  py::class_<GenerationHandle> generation(
      module, "Generation", "Iterator over the pieces of an answer; see Session.generate().");
  generation.def(py::init<std::shared_ptr<SessionHandle>, const py::object&, const OptionsHandle&,
                          const py::object&>(),
                 py::arg("session"), py::arg("prompt"), py::arg("options"),
                 py::arg("progress") = py::none(), "Reads the prompt (token ids).");
  generation.def("__iter__", [](const py::object& self) { return self; });
  generation.def("__next__", &GenerationHandle::next);
  generation.def("close", &GenerationHandle::close,
                 "Ends the iteration; what was generated stays in the session.");
  generation.def("__enter__", [](const py::object& self) { return self; });
  generation.def("__exit__", [](GenerationHandle& self, const py::args&) { self.close(); });
  generation.def_property_readonly(
      "finish_reason", &GenerationHandle::finish_reason,
      "None while going on; 'stop' (end token or stop string), 'length' (max_tokens or the context "
      "is full) or 'cancelled' (closed before).");
  generation.def_property_readonly(
      "prompt_tokens", [](const GenerationHandle& self) { return self.get().prompt_tokens(); },
      "Tokens of the prompt that were read for this answer.");
  generation.def_property_readonly(
      "generated_tokens",
      [](const GenerationHandle& self) { return self.get().generated_tokens(); },
      "Tokens sampled so far.");
  generation.def_property_readonly(
      "drafted_tokens", [](const GenerationHandle& self) { return self.get().drafted_tokens(); },
      "Tokens that were guessed and computed in advance.");
  generation.def_property_readonly(
      "accepted_tokens", [](const GenerationHandle& self) { return self.get().accepted_tokens(); },
      "Those of them that came.");
  generation.def_property_readonly(
      "prompt_seconds", [](const GenerationHandle& self) { return self.get().prompt_seconds(); },
      "Time spent reading the prompt.");
  generation.def_property_readonly(
      "decode_seconds", [](const GenerationHandle& self) { return self.get().decode_seconds(); },
      "Time spent sampling and decoding.");
}

}  // namespace kve::python
