#include "session.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

namespace kve::python {

py::array_t<float> logits_view(const std::shared_ptr<const Logits>& logits) {
  const py::capsule base(new std::shared_ptr<const Logits>(logits), [](void* pointer) {
    delete static_cast<std::shared_ptr<const Logits>*>(pointer);
  });
  py::array_t<float> array({logits->rows, logits->cols}, logits->values.data(), base);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

namespace {

using Handle = std::shared_ptr<SessionHandle>;

py::array_t<float> copy_of(const ConstMat& rows) {
  py::array_t<float> out({rows.rows, rows.cols});
  for (int64_t r = 0; r < rows.rows; ++r) {
    std::copy_n(rows.row(r), rows.cols, out.mutable_data(r, 0));
  }
  return out;
}

// A Python function as the engine calls it. It may be called, copied and dropped by whoever does
// not hold the interpreter's lock.
RowScorer scorer_of(const py::object& function) {
  if (function.is_none()) return {};
  const std::shared_ptr<py::object> held(new py::object(function), [](py::object* object) {
    const py::gil_scoped_acquire lock;
    delete object;
  });
  return [held](const HeadPlace& place, const HeadRows& rows, std::span<float> scores) {
    const py::gil_scoped_acquire lock;
    const py::array_t<float> mass(static_cast<py::ssize_t>(rows.mass.size()), rows.mass.data());
    const py::object queries =
        copy_of(rows.queries).attr("reshape")(rows.n_queries, rows.group, rows.keys.cols);
    const py::object found = (*held)(copy_of(rows.keys), copy_of(rows.values), queries, mass);
    using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
    const Floats array = Floats::ensure(found);
    if (!array) PyErr_Clear();
    if (!array || array.ndim() != 1 || array.size() != static_cast<py::ssize_t>(scores.size())) {
      throw ConfigError(
          message("scorer: layer ", place.layer, ", kv head ", place.kv_head, ": expected ",
                  scores.size(), " numbers, one per token, found ",
                  array ? message(array.ndim(), " dimensions, ", array.size(), " numbers")
                        : std::string("no array of them")));
    }
    std::copy_n(array.data(), scores.size(), scores.begin());
  };
}

Handle make(const std::shared_ptr<Model>& model, int n_ctx, std::string_view cache, bool exact,
            int n_batch, const std::string& kv_budget, const py::object& scorer) {
  SessionOptions options = {.n_ctx = n_ctx,
                            .cache = CacheSpec::parse(cache),
                            .exact = exact,
                            .n_batch = n_batch,
                            .scorer = scorer_of(scorer)};
  if (!kv_budget.empty()) {
    const int context = n_ctx == 0 ? model->spec().n_ctx : n_ctx;
    options.kv_budget =
        std::max<int64_t>(1, parse_budget(kv_budget, model->spec().cache_shape(), context));
  }
  return std::make_shared<SessionHandle>(model->session(options));
}

Handle restore(const std::shared_ptr<Model>& model, const std::filesystem::path& path,
               const py::object& scorer) {
  RowScorer own = scorer_of(scorer);
  const py::gil_scoped_release release;
  return std::make_shared<SessionHandle>(model->restore(path, std::move(own)));
}

Handle fork(SessionHandle& handle) {
  const SessionUse session(handle);
  const py::gil_scoped_release release;
  return std::make_shared<SessionHandle>(session->fork());
}

py::array_t<float> forward(SessionHandle& handle, const py::object& tokens, bool all_logits,
                           const py::object& progress) {
  const std::vector<Token> ids = token_list(tokens);
  PythonProgress watcher(progress);
  const SessionUse session(handle);
  ++handle.changes;
  std::shared_ptr<const Logits> logits;
  try {
    const py::gil_scoped_release release;
    logits = session->forward(ids, all_logits, watcher.function());
  } catch (const CancelledError&) {
    watcher.rethrow();
    throw;
  }
  watcher.rethrow();
  return logits_view(logits);
}

int reuse_prefix(SessionHandle& handle, const py::object& tokens) {
  const std::vector<Token> ids = token_list(tokens);
  const SessionUse session(handle);
  ++handle.changes;
  return session->reuse_prefix(ids);
}

void truncate(SessionHandle& handle, int n_tokens) {
  const SessionUse session(handle);
  ++handle.changes;
  session->truncate(n_tokens);
}

void save(SessionHandle& handle, const std::filesystem::path& path) {
  const SessionUse session(handle);
  const py::gil_scoped_release release;
  session->save(path);
}

py::object last_logits(SessionHandle& handle) {
  const SessionUse session(handle);
  if (!session->last_logits()) return py::none();
  const py::array_t<float> all = logits_view(session->last_logits());
  return all[py::slice(py::int_(-1), py::none(), py::none())];
}

}  // namespace

void bind_session(py::module_& module) {
  py::class_<SessionHandle, Handle> session(
      module, "Session", "One conversation with a model: tokens and their compressed cache.");
  session.def(py::init(&make), py::arg("model"), py::kw_only(), py::arg("n_ctx") = 0,
              py::arg("cache") = "f16", py::arg("exact") = false, py::arg("n_batch") = 0,
              py::arg("kv_budget") = "", py::arg("scorer") = py::none(),
              R"(An empty session.

n_ctx: most tokens it may hold; 0: what the model was trained for.
cache: a cache spec, see caches().
exact: f32 activations instead of int8 (or bf16).
n_batch: tokens per forward pass while a prompt is read; 0: 512 where the cache keeps all rows as
    they are, else 256, or up to 512 while much of the prompt is to follow.
kv_budget: most bytes of the cache, like '64MiB' or 'bits=3'; empty: no limit.
scorer: for a cache with the selector `custom`: score(keys [n, head_dim], values [n, head_dim],
    queries [w, query heads, head_dim], attention_mass [n]) of one kv head, float32 arrays, returns n
    numbers; the tokens of the highest stay. attention_mass: the weights of the w newest queries,
    summed.
Raises ConfigError, and what the scorer does.)");
  session.def(py::init(&restore), py::arg("model"), py::kw_only(), py::arg("restore"),
              py::arg("scorer") = py::none(),
              R"(A session that save() wrote to the file `restore`; it goes on bit-identically.

scorer: of a cache with the selector `custom`, as above; the file does not keep it.
Raises IoError, FormatError (damaged or cut short), ConfigError (written by another model, or
without the scorer that its cache needs), UnsupportedError (newer version).)");
  session.def(py::init(&fork), py::arg("fork"),
              "A copy of another session that shares its full pages.");
  session.def("forward", &forward, py::arg("tokens"), py::arg("all_logits") = false,
              py::arg("progress") = py::none(),
              R"(Reads tokens after those already held.

Returns logits: read-only float32 ndarray [1, vocab_size] of the last token, or [n, vocab_size] with
all_logits. It is a view that never changes, however the session goes on.
progress(done, total) is called after every chunk of n_batch tokens; returning False cancels. The
chunks that were finished by then stay (see n_tokens).
Raises ConfigError (no tokens, unknown ids), CapacityError (more than n_ctx), CancelledError.)");
  session.def(
      "reuse_prefix", &reuse_prefix, py::arg("tokens"),
      R"(Keeps the longest common prefix of what is held and `tokens`, but leaves at least one
of `tokens` to be read; forgets the rest. Returns the length of the prefix.)");
  session.def("truncate", &truncate, py::arg("n_tokens"),
              "Forgets the tokens from position n_tokens on. Raises ConfigError.");
  session.def("save", &save, py::arg("path"),
              "Writes everything that is needed to go on, atomically. Raises IoError.");
  session.def_property_readonly(
      "tokens",
      [](SessionHandle& self) {
        const auto tokens = SessionUse(self)->tokens();
        return std::vector<Token>(tokens.begin(), tokens.end());
      },
      "Ids of all tokens held, as a new list.");
  session.def_property_readonly(
      "n_tokens", [](SessionHandle& self) { return SessionUse(self)->n_tokens(); },
      "Number of tokens held.");
  session.def_property_readonly(
      "n_ctx", [](const SessionHandle& self) { return self.session.n_ctx(); },
      "Most tokens the session may hold.");
  session.def_property_readonly(
      "exact", [](const SessionHandle& self) { return self.session.options().exact; },
      "Whether activations are f32.");
  session.def_property_readonly("last_logits", &last_logits,
                                "Logits after the last token: read-only float32 ndarray "
                                "[1, vocab_size]; None in an empty or truncated session.");
}

}  // namespace kve::python
