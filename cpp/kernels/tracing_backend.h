// Shows where the time of forward passes goes: wraps any backend and adds up, for every kind and
// shape of operation, calls, time, bytes of weights or cache, and arithmetic.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace kve {

// The sums of one kind of operation, for all passes of one phase.
struct TraceLine {
  std::string name;  // "matmul 1536x576 Q4_1 fast x2"
  int64_t calls = 0;
  double seconds = 0;
  double bytes = 0;  // of weights, cache rows or pages, as if each were read (written) once a call
  double operations = 0;  // a multiply-add is two
};

// A forward pass begins with embed(); passes of kPrefillTokens or more are counted as prefill.
struct TracePhase {
  static constexpr int64_t kPrefillTokens = 8;

  int64_t passes = 0;
  int64_t tokens = 0;
  double seconds = 0;  // from the start of the first operation of each pass to the end of its last
  std::vector<TraceLine> lines;
};

class TracingBackend final : public Backend {
 public:
  // `report` is called with the tables when the backend goes, if anything was computed.
  using Report = std::function<void(std::string_view)>;
  TracingBackend(std::unique_ptr<Backend> backend, Report report);
  ~TracingBackend() override;

  std::string_view name() const override { return backend_->name(); }
  ThreadPool& pool() override { return backend_->pool(); }
  MemorySource& memory() override { return backend_->memory(); }
  void keep(std::span<const std::byte> constants) override { backend_->keep(constants); }
  bool was_on_host() const override { return backend_->was_on_host(); }
  // Passes are not known to a device: every operation is waited for.

  size_t repacked_bytes(const Weight& weight) const override {
    return backend_->repacked_bytes(weight);
  }
  void repack(const Weight& weight, std::byte* memory) override {
    backend_->repack(weight, memory);
  }

  void embed(const Weight& table, std::span<const Token> tokens, float scale, Mat out) override;
  void matmul(ConstMat x, std::span<const Product> products, Precision precision) override;
  void rms_norm(ConstMat x, const float* weight, float eps, Mat out) override;
  void layer_norm(ConstMat x, const float* weight, const float* bias, float eps, Mat out) override;
  void rope(Mat x, int head_dim, RopeLayout layout, ConstMat cos, ConstMat sin) override;
  void gated(Activation activation, Mat gate, ConstMat up) override;
  bool fused_block(ConstMat x, const GatedBlock& block, Precision in, Precision out) override;
  void add(Mat x, ConstMat y) override;
  void add_rms_norm(Mat x, ConstMat y, const float* weight, float eps, Mat out) override;
  void softcap(float cap, Mat x) override;
  void clamp(float limit, Mat x) override;
  void attend(const AttendParams& params, std::span<const AttendTask> tasks) override;
  void attention_mass(const AttendParams& params, MassOf what,
                      std::span<const MassTask> tasks) override;
  ReadPath read_path(const SideView& side, Precision precision) const override {
    return backend_->read_path(side, precision);
  }
  // Part of the cache's own work, on any thread: not counted.
  void dot_halves(const HalfDots& job) const override { backend_->dot_halves(job); }
  int64_t add_gram(const HalfGram& job) const override { return backend_->add_gram(job); }
  int64_t seal(std::span<const SealJob> jobs) override;

  const TracePhase& prefill() const { return prefill_; }
  const TracePhase& decode() const { return decode_; }
  // Both phases as tables, the most expensive operations first.
  std::string tables() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Work {
    double bytes = 0;
    double operations = 0;
  };

  double weight_bytes(const Weight& weight) const;
  // Runs `operation`, adding its time, until a device has done it, to the line of that name.
  template <class Operation>
  void timed(Work work, const Operation& operation);
  void record(Work work, Clock::time_point start);

  std::unique_ptr<Backend> backend_;
  Report report_;
  TracePhase prefill_;
  TracePhase decode_;
  TracePhase* phase_ = &decode_;
  Clock::time_point last_end_ = Clock::now();
  std::string name_;  // of the operation at hand; kept for its memory
};

// `destination` is what the environment variable KVENGINE_TRACE says: empty or "0" leaves the
// backend as it is; "1" prints to standard error; anything else is a file that tables are appended
// to. Throws IoError when that file cannot be opened.
std::unique_ptr<Backend> trace_if_asked(std::unique_ptr<Backend> backend,
                                        std::string_view destination);

}  // namespace kve
