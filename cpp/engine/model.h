// engine/: a loaded model and its sessions, the objects that users hold.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "cache/plan.h"
#include "cache/select/selector.h"
#include "engine/key_guard.h"
#include "engine/pass_mutex.h"
#include "gguf/gguf_file.h"
#include "kernels/backend.h"
#include "models/decoder.h"
#include "models/spec.h"
#include "models/weights.h"
#include "text/tokenizer.h"

namespace kve {

class Session;
struct SessionOptions;

struct LoadOptions {
  // "cpu", "cuda" (the GPU that CUDA counts as its first), or "auto": the GPU where there is one
  // that works, and else the CPU (Model::device_note() says why). "cuda:cache=8GiB": pages of
  // caches take at most so much of the GPU's memory, and others wait in the host's.
  std::string device = "cpu";
  int threads = 0;  // 0: all processors this process may use
  std::string
      isa;  // "scalar", "avx2", "avx512", "amx"; empty: the best available (or KVENGINE_ISA)
  // Copies weights to the layout that the backend reads fastest; else they are read from the mapped
  // file, which saves that memory and the time to fill it. A GPU has no choice.
  bool repack = true;
};

// Immutable and shared: any number of sessions, one forward pass at a time.
class Model : public std::enable_shared_from_this<Model> {
 public:
  // Maps the file, checks every tensor, builds the tokenizer. Throws IoError, FormatError,
  // UnsupportedError (architecture, tokenizer or feature), ConfigError (options), DeviceError (no
  // GPU, or a build without CUDA), CapacityError.
  static std::shared_ptr<Model> load(const std::filesystem::path& path,
                                     const LoadOptions& options = {});

  // A new, empty conversation. Throws ConfigError.
  Session session(const SessionOptions& options);
  Session session();
  // Reads a file written by Session::save. Throws IoError, FormatError (damaged, cut short),
  // ConfigError (written by another model, or its cache has the selector `custom` and `scorer` is
  // none, or the other way round), UnsupportedError (newer version). The scorer goes on for the one
  // that the session was saved with, which the file does not keep.
  Session restore(const std::filesystem::path& path, RowScorer scorer = {});

  // See cache/plan.h; n_ctx 0 means what the model was trained for.
  CachePlan plan_cache(PlanOptions options);

  // What a cache is known to do to models like this one, a sentence each; none as a rule.
  std::vector<std::string> cache_warnings(const CacheSpec& cache) const;

  const GgufFile& file() const { return *file_; }
  const ModelSpec& spec() const { return spec_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  Backend& backend() const { return *backend_; }
  const std::string& device() const { return device_; }  // "cpu" or "cuda"
  // Why device "auto" has become the CPU, a sentence; else empty.
  const std::string& device_note() const { return device_note_; }
  int threads() const { return backend_->pool().size(); }
  // Memory of the copies made by LoadOptions::repack.
  size_t repacked_bytes() const { return weights_->repacked_bytes(); }
  // The Jinja source the file carries; empty if none.
  const std::string& chat_template() const { return chat_template_; }
  // Identifies the weights, for session files: metadata, tensor table and a sample of the data.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  friend class Session;
  Model() = default;

  std::shared_ptr<const GgufFile> file_;
  ModelSpec spec_;
  std::unique_ptr<const Tokenizer> tokenizer_;
  std::string chat_template_;
  uint64_t fingerprint_ = 0;
  std::unique_ptr<Backend> backend_;
  std::string device_;
  std::string device_note_;
  std::unique_ptr<ModelWeights> weights_;
  std::unique_ptr<Decoder> decoder_;
  PassMutex forward_mutex_;                 // backend and decoder keep scratch memory
  mutable std::once_flag key_biases_once_;  // they are looked for when a cache asks
  mutable std::vector<KeyBias> key_biases_;
};

}  // namespace kve
