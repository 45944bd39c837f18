#include "engine/session.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/printable.h"
#include "cache/calibrated_bases.h"
#include "cache/select/selector_stage.h"
#include "engine/pass_length.h"
#include "engine/prompt_repeat.h"
#include "engine/session_file.h"
#include "kernels/few_rows.h"
#include "models/batch.h"
#include "models/value_norms.h"

namespace kve {
namespace {

// Whether all rows stay as they are.
bool keeps_rows(const CacheSpec& cache) {
  const auto keeps = [](const SideSpec& side) {
    return side.projector.kind == ProjectorSpec::Kind::none && side.codec.is_float() &&
           side.older.empty();
  };
  return cache.selector.kind == SelectorSpec::Kind::full && keeps(cache.k) && keeps(cache.v) &&
         std::ranges::all_of(cache.rules, [&](const LayerRule& rule) {
           return (!rule.k || keeps(*rule.k)) && (!rule.v || keeps(*rule.v));
         });
}

// Whether a prompt's rows stay as they are until all of it is read, so that longer passes hold no
// more of them.
bool keeps_prompt(const SessionOptions& options) {
  const CacheSpec& cache = options.cache;
  const bool selects = options.scorer != nullptr || !cache.selector.keeps_all();
  if (selects && cache.selector.chunked) return false;
  return selects || cache.exact_prefill || cache.prunes_channels() || keeps_rows(cache);
}

SessionOptions checked(const Model& model, SessionOptions options) {
  if (options.n_ctx == 0) options.n_ctx = model.spec().n_ctx;
  constexpr int kMaxContext = 1 << 28;
  if (options.n_ctx < 1 || options.n_ctx > kMaxContext) {
    throw ConfigError(
        message("n_ctx: expected 1 to ", kMaxContext, " tokens, found ", options.n_ctx));
  }
  if (const std::string error = selector_room_error(options.cache.selector, options.n_ctx);
      !error.empty()) {
    throw ConfigError("cache: " + error);
  }
  if (!options.cache.bases.empty()) {
    const CalibratedBases bases = CalibratedBases::open(options.cache.bases);
    if (bases.model() != model.fingerprint()) {
      throw ConfigError(
          message("cache: basis: expected bases that were calibrated for this model, "
                  "found those of another in ",
                  printable(options.cache.bases, 1024)));
    }
  }
  if (options.kv_budget < 0) {
    throw ConfigError(message("kv_budget: expected 0 or more bytes, found ", options.kv_budget));
  }
  constexpr int kMaxBatch = 4096;
  if (options.n_batch < 0 || options.n_batch > kMaxBatch) {
    throw ConfigError(
        message("n_batch: expected 0 to ", kMaxBatch, " tokens, found ", options.n_batch));
  }
  if (options.n_batch == 0) options.n_batch = keeps_prompt(options) ? 512 : 256;
  // A span of queries retrieves its blocks together, so it is read together.
  if (options.cache.selector.uses_blocks()) options.n_batch = options.cache.selector.span;
  return options;
}

// Where the length of passes was left to the session, which may choose longer ones then.
double share_for_passes(const Model& model, const SessionOptions& options) {
  const bool may = options.n_batch == 0 && options.kv_budget == 0 && options.scorer == nullptr &&
                   !keeps_prompt(options);
  return may ? sealed_share(options.cache, model.spec().cache_shape()) : 0.0;
}

// Tells a cache, if there is one, of the tokens that several passes are going to bring.
class Expected {
 public:
  Expected(KvCache* cache, int64_t n) : cache_(cache) {
    if (cache_ != nullptr) cache_->expect(static_cast<int>(n));
  }
  Expected(const Expected&) = delete;
  Expected& operator=(const Expected&) = delete;
  ~Expected() {
    if (cache_ != nullptr) cache_->expect(0);
  }

 private:
  KvCache* cache_;
};

}  // namespace

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options)
    : model_(std::move(model)),
      options_(checked(*model_, options)),
      cache_(options_.cache, model_->spec().cache_shape(), options_.scorer,
             model_->backend().memory()),
      sealed_share_(share_for_passes(*model_, options)) {
  if (options_.kv_budget > 0) cache_.limit_memory(options_.kv_budget);
}

std::shared_ptr<Logits> Session::logits_buffer(int64_t rows) {
  auto logits = rows == 1 ? std::exchange(spare_row_, nullptr) : nullptr;
  // A buffer that somebody still looks at is left to them.
  if (!logits || logits.use_count() > 1) logits = std::make_shared<Logits>();
  logits->rows = rows;
  logits->cols = model_->spec().vocab_size;
  logits->values.resize(static_cast<size_t>(rows * logits->cols));
  return logits;
}

void Session::keep_last_row(const std::shared_ptr<Logits>& logits) {
  // All rows of a long text may take gigabytes: they are the caller's, the session keeps the last.
  std::shared_ptr<Logits> row = logits;
  if (logits->rows > 1) {
    const auto last = logits->last();
    row = logits_buffer(1);
    std::copy(last.begin(), last.end(), row->values.begin());
  }
  spare_row_ = std::exchange(last_row_, row);
}

std::shared_ptr<const Logits> Session::forward(std::span<const Token> tokens, bool all_logits,
                                               const Progress& progress) {
  check(tokens);
  drop_ahead();
  reserve_tokens(tokens.size());
  const auto total = static_cast<int64_t>(tokens.size());
  const std::shared_ptr<Logits> logits = logits_buffer(all_logits ? total : 1);
  const int before = n_tokens();
  try {
    read_chunks(tokens, {logits->values.data(), logits->rows, logits->cols}, all_logits, progress);
  } catch (...) {
    if (n_tokens() != before) last_row_.reset();
    throw;
  }
  keep_last_row(logits);
  return logits;
}

void Session::run(Model& model, const Batch& batch) {
  const std::lock_guard lock(model.forward_mutex_);
  model.decoder_->forward(batch);
}

void Session::check(std::span<const Token> tokens) const {
  if (tokens.empty()) throw ConfigError("tokens: expected at least one, found none");
  for (const Token token : tokens) {
    if (token < 0 || token >= model_->spec().vocab_size) {
      throw ConfigError(message("token: expected an id from 0 to ", model_->spec().vocab_size - 1,
                                ", found ", token));
    }
  }
  const auto total = static_cast<int64_t>(tokens.size());
  if (total > options_.n_ctx - n_tokens()) {
    throw CapacityError(message("context: expected room for ", total, " more tokens, found ",
                                options_.n_ctx - n_tokens(), " of ", options_.n_ctx,
                                " free (raise n_ctx)"));
  }
}

// Room first (with some to spare), so that nothing can fail once tokens are in the cache.
void Session::reserve_tokens(size_t n) {
  const size_t needed = tokens_.size() + n;
  if (needed > tokens_.capacity()) tokens_.reserve(std::max(needed, 2 * tokens_.capacity()));
}

void Session::read_chunks(std::span<const Token> tokens, Mat logits, bool all_logits,
                          const Progress& progress) {
  const auto n_new = static_cast<int64_t>(tokens.size());
  const std::optional<PromptRepeat> repeat = repeat_after(tokens.size());
  const int64_t total = n_new + (repeat ? repeat->total() : 0);
  int64_t done = 0;
  const auto report = [&](int64_t n) {
    done += n;
    if (progress && !progress(done, total) && done < total) {
      throw CancelledError(message("cancelled after ", done, " of ", total, " tokens"));
    }
  };
  const Expected expected(next_pass(n_new) < n_new ? &cache_ : nullptr, n_new);
  while (done < n_new) {
    const int64_t n = next_pass(n_new - done);
    const bool last = done + n == n_new;
    const Mat wanted = all_logits ? logits.block(done, n) : logits.block(0, last ? 1 : 0);
    const auto chunk = tokens.subspan(static_cast<size_t>(done), static_cast<size_t>(n));
    const Batch::Slice slice{&cache_, chunk, wanted, true, !last || repeat};
    run(*model_, {.slices = {&slice, 1}, .exact = options_.exact});
    tokens_.insert(tokens_.end(), chunk.begin(), chunk.end());
    report(n);
  }
  if (repeat) repeat_prompt(*repeat, report);
}

int64_t Session::next_pass(int64_t left) const {
  return pass_tokens(options_.n_batch, sealed_share_, left);
}

std::optional<PromptRepeat> Session::repeat_after(size_t n) const {
  const int context = n_tokens() + static_cast<int>(n);
  if (!cache_.wants_repeat(context)) return std::nullopt;
  return PromptRepeat(*model_, options_.cache.selector.chunk, context);
}

void Session::repeat_prompt(const PromptRepeat& repeat, const std::function<void(int64_t)>& did) {
  try {
    for (int i = 0; i < repeat.n_parts(); ++i) {
      const std::vector<Token> input = repeat.tokens(i, tokens_);
      cache_.begin_repeat(repeat.part(i).first, repeat.part(i).end);
      for (size_t at = 0; at < input.size();) {
        const size_t n = std::min(input.size() - at, static_cast<size_t>(options_.n_batch));
        const Batch::Slice slice{.cache = &cache_,
                                 .tokens = std::span(input).subspan(at, n),
                                 .logits = {},
                                 .commit = false,
                                 .behind = static_cast<int>(at)};
        run(*model_, {.slices = {&slice, 1}, .exact = options_.exact});
        at += n;
        did(static_cast<int64_t>(n));
      }
    }
    const std::lock_guard lock(model_->forward_mutex_);
    HeadNorms norms(model_->spec(), *model_->weights_, model_->backend().pool());
    cache_.end_prompt(model_->backend(), std::ref(norms));
  } catch (...) {
    cache_.cancel_repeat();
    throw;
  }
}

int Session::reuse_prefix(std::span<const Token> tokens) {
  const size_t limit = std::min(tokens_.size(), tokens.empty() ? 0 : tokens.size() - 1);
  const auto [mine, theirs] = std::mismatch(
      tokens_.begin(), tokens_.begin() + static_cast<ptrdiff_t>(limit), tokens.begin());
  auto common = static_cast<int>(mine - tokens_.begin());
  // Layers with a window may no longer hold what the first differing token attends to.
  if (!cache_.can_truncate(common)) common = 0;
  if (common < n_tokens()) truncate(common);
  return common;
}

std::shared_ptr<const Logits> Session::look_ahead(std::span<const Token> tokens) {
  check(tokens);
  if (tokens.size() > static_cast<size_t>(max_ahead())) {
    throw ConfigError(
        message("look ahead: expected at most ", max_ahead(), " tokens, found ", tokens.size()));
  }
  drop_ahead();
  reserve_tokens(tokens.size());
  ahead_.reserve(tokens.size());
  if (!ahead_logits_ || ahead_logits_.use_count() > 1) ahead_logits_ = std::make_shared<Logits>();
  Logits& logits = *ahead_logits_;
  logits.rows = static_cast<int64_t>(tokens.size());
  logits.cols = model_->spec().vocab_size;
  logits.values.resize(static_cast<size_t>(logits.rows * logits.cols));
  const Batch::Slice slice{
      &cache_, tokens, {logits.values.data(), logits.rows, logits.cols}, false};
  run(*model_, {.slices = {&slice, 1}, .exact = options_.exact});
  ahead_.assign(tokens.begin(), tokens.end());
  return ahead_logits_;
}

int Session::max_ahead() const {
  return std::min({kFewRows, options_.n_ctx - n_tokens(), cache_.tokens_until_seal()});
}

void Session::accept(int n) {
  if (n < 1 || static_cast<size_t>(n) > ahead().size()) {
    throw ConfigError(message("accept: expected 1 to ", ahead().size(), " tokens, found ", n));
  }
  const auto last = ahead().subspan(0, static_cast<size_t>(n));
  const std::shared_ptr<Logits> row = logits_buffer(1);
  std::copy_n(ahead_logits_->values.begin() +
                  static_cast<ptrdiff_t>(accepted_ + last.size() - 1) * row->cols,
              row->cols, row->values.begin());
  try {
    const std::lock_guard lock(model_->forward_mutex_);
    cache_.commit(model_->backend(), n);
  } catch (...) {
    drop_ahead();
    throw;
  }
  tokens_.insert(tokens_.end(), last.begin(), last.end());
  accepted_ += last.size();
  spare_row_ = std::exchange(last_row_, row);
}

void Session::drop_ahead() {
  if (!ahead().empty()) cache_.rollback();
  ahead_.clear();
  accepted_ = 0;
}

CacheStats Session::cache_stats() const {
  CacheStats stats = cache_.stats();
  const Precision precision = options_.exact ? Precision::exact : Precision::fast;
  constexpr const char* kPaths[] = {"fused", "rebuilt", "host"};  // in the order of ReadPath
  stats.path = kPaths[static_cast<size_t>(cache_.read_path(model_->backend(), precision))];
  return stats;
}

void Session::truncate(int n) {
  drop_ahead();
  if (n == n_tokens()) return;
  cache_.truncate(n);
  tokens_.resize(static_cast<size_t>(n));
  last_row_.reset();
}

Session Session::fork() const {
  Session copy(model_, options_);
  copy.cache_ = cache_.fork();
  copy.tokens_ = tokens_;
  copy.sealed_share_ = sealed_share_;
  if (last_row_) copy.last_row_ = std::make_shared<Logits>(*last_row_);
  return copy;
}

void Session::save(const std::filesystem::path& path) const {
  SessionState state{options_, tokens_, {}, ahead().empty() ? cache_.save() : cache_.fork().save()};
  if (last_row_) state.last_logits = last_row_->values;
  write_session_file(path, model_->fingerprint(), state);
}

void Session::restore(SessionState&& state) {
  const int vocab_size = model_->spec().vocab_size;
  for (const Token token : state.tokens) {
    if (token < 0 || token >= vocab_size) {
      throw FormatError(
          message("session: expected token ids from 0 to ", vocab_size - 1, ", found ", token));
    }
  }
  cache_.load(state.cache);
  if (cache_.n_tokens() != static_cast<int>(state.tokens.size())) {
    throw FormatError(message("session: expected a cache of ", state.tokens.size(),
                              " tokens, found ", cache_.n_tokens()));
  }
  if (!state.last_logits.empty()) {
    if (state.last_logits.size() != static_cast<size_t>(vocab_size)) {
      throw FormatError(
          message("session: expected ", vocab_size, " logits, found ", state.last_logits.size()));
    }
    auto logits = std::make_shared<Logits>();
    logits->values = std::move(state.last_logits);
    logits->rows = 1;
    logits->cols = vocab_size;
    last_row_ = logits;
  }
  tokens_ = std::move(state.tokens);
}

}  // namespace kve
