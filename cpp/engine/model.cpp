#include "engine/model.h"

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "base/hash.h"
#include "engine/session.h"
#include "engine/session_file.h"
#include "kernels/choose_backend.h"
#include "kernels/tracing_backend.h"
#include "text/vocabulary.h"

namespace kve {
namespace {

// Metadata, the tensor table and up to 64 bytes of every tensor: enough to tell two models, or two
// quantizations of one, apart without reading all weights.
uint64_t fingerprint_of(const GgufFile& file) {
  uint64_t hash = 0;
  const auto add_text = [&hash](std::string_view text) {
    hash = hash64(std::as_bytes(std::span(text.data(), text.size())), hash);
  };
  for (const MetaValue& value : file.metadata()) {
    add_text(value.key());
    hash = hash64(value.payload(), hash);
  }
  for (const TensorInfo& tensor : file.tensors()) {
    add_text(tensor.name);
    add_text(tensor.shape_string());
    add_text(format(tensor.type).name);
    const size_t n = std::min<size_t>(tensor.bytes, 64);
    hash = hash64({tensor.data + (tensor.bytes - n) / 2, n}, hash);
  }
  return hash;
}

}  // namespace

std::shared_ptr<Model> Model::load(const std::filesystem::path& path, const LoadOptions& options) {
  if (options.threads < 0) {
    throw ConfigError(message("threads: expected 0 (all) or more, found ", options.threads));
  }
  std::shared_ptr<Model> model(new Model());
  model->file_ = GgufFile::open(path);
  const GgufFile& file = *model->file_;
  model->spec_ = describe(file);
  model->weights_ = std::make_unique<ModelWeights>(model->file_, model->spec_);
  model->tokenizer_ = Tokenizer::create(read_vocabulary(file));
  if (model->tokenizer_->vocab_size() > model->spec_.vocab_size) {
    throw FormatError(message("token_embd.weight: expected a row for each of the ",
                              model->tokenizer_->vocab_size(), " tokens of the vocabulary, found ",
                              model->spec_.vocab_size, " rows"));
  }
  model->chat_template_ = file.get_or<std::string>("tokenizer.chat_template", "");
  model->fingerprint_ = fingerprint_of(file);
  const int threads = options.threads > 0 ? options.threads : default_thread_count();
  ChosenBackend chosen = choose_backend(options.device, threads, options.isa);
  if (!options.repack && chosen.is_device) {
    throw ConfigError("repack: expected true with a GPU, which has a layout of its own");
  }
  model->device_ = chosen.is_device ? "cuda" : "cpu";
  model->device_note_ = std::move(chosen.note);
  const char* trace = std::getenv("KVENGINE_TRACE");
  model->backend_ = trace_if_asked(std::move(chosen.backend), trace == nullptr ? "" : trace);
  if (options.repack) model->weights_->repack(*model->backend_);
  model->weights_->keep(*model->backend_);
  model->decoder_ = std::make_unique<Decoder>(model->spec_, *model->weights_, *model->backend_);
  return model;
}

Session Model::session(const SessionOptions& options) {
  return Session(shared_from_this(), options);
}

Session Model::session() { return session(SessionOptions{}); }

CachePlan Model::plan_cache(PlanOptions options) {
  if (options.n_ctx == 0) options.n_ctx = spec_.n_ctx;
  const std::vector<LayerShape> shapes = spec_.cache_shape();
  const std::lock_guard lock(forward_mutex_);
  return kve::plan_cache(*backend_, shapes, options);
}

std::vector<std::string> Model::cache_warnings(const CacheSpec& cache) const {
  std::call_once(key_biases_once_, [this] { key_biases_ = key_biases(spec_, *weights_); });
  if (key_biases_.empty()) return {};
  const auto n_layers = static_cast<int>(spec_.layers.size());
  std::string biases =
      key_bias_warning(key_biases_, n_layers, spec_.layers[0].attention.head_dim, cache);
  if (biases.empty()) return {};
  return {std::move(biases)};
}

Session Model::restore(const std::filesystem::path& path, RowScorer scorer) {
  SessionState state = read_session_file(path, fingerprint_);
  state.options.scorer = std::move(scorer);
  Session session(shared_from_this(), state.options);
  session.restore(std::move(state));
  return session;
}

}  // namespace kve
