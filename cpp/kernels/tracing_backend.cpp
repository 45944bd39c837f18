#include "kernels/tracing_backend.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <utility>

#include "base/error.h"

namespace kve {
namespace {

template <class... Args>
void print(std::string& out, const char* format, Args... args) {
  char line[256];
  const int n = std::snprintf(line, sizeof(line), format, args...);
  out.append(line, static_cast<size_t>(std::clamp(n, 0, static_cast<int>(sizeof(line)) - 1)));
}

const char* precision_name(Precision precision) {
  switch (precision) {
    case Precision::exact:
      return "exact";
    case Precision::fine:
      return "fine";
    case Precision::mixed:
      return "mixed";
    case Precision::fast:
      return "fast";
  }
  return "?";
}

double values(ConstMat m) { return static_cast<double>(m.rows) * static_cast<double>(m.cols); }

// Rows of a head's cache that at least one query of the task sees.
struct Visible {
  int64_t rows = 0;   // read
  int64_t pairs = 0;  // (query, row)
};
Visible visible_rows(const AttendParams& params, int64_t first_pos, int64_t n_queries,
                     const HeadView& head) {
  Visible seen;
  int64_t first_query = first_pos - head.first_pos;
  if (head.positions != nullptr) {
    const int32_t* past = head.positions + head.n_rows;
    first_query = std::lower_bound(head.positions, past, first_pos) - head.positions;
  }
  int64_t oldest = head.n_rows;
  int64_t newest = 0;
  for (int64_t row = first_query; row < first_query + n_queries; ++row) {
    const int64_t end = std::min<int64_t>(row + 1, head.n_rows);
    int64_t begin = 0;
    if (params.window > 0) begin = std::max<int64_t>(begin, row - params.window + 1);
    if (begin >= end) continue;
    oldest = std::min(oldest, begin);
    newest = std::max(newest, end);
    seen.pairs += end - begin;
  }
  seen.rows = std::max<int64_t>(0, newest - oldest);
  return seen;
}

// A row's share of a full page.
double row_bytes(const PageFormat& format) {
  return static_cast<double>(page_bytes(format)) / kPageTokens;
}
double row_bytes(const SideView& side) {
  return row_bytes(side.format) * side.n_channels / std::max(1, side.format.width);
}

void append_phase(std::string& out, const char* title, const TracePhase& phase) {
  if (phase.passes == 0) return;
  const auto passes = static_cast<double>(phase.passes);
  print(out, "%s: %lld passes, %lld tokens, %.3f ms per pass, %.1f tokens/s\n", title,
        static_cast<long long>(phase.passes), static_cast<long long>(phase.tokens),
        phase.seconds / passes * 1e3, static_cast<double>(phase.tokens) / phase.seconds);
  print(out, "  %9s %6s %8s %9s %9s %9s  %s\n", "ms/pass", "share", "calls", "us/call", "GB/s",
        "Gop/s", "operation");
  std::vector<TraceLine> lines = phase.lines;
  double inside = 0;
  for (const TraceLine& line : lines) inside += line.seconds;
  lines.push_back({"(between operations)", phase.passes, phase.seconds - inside});
  std::stable_sort(lines.begin(), lines.end(),
                   [](const TraceLine& a, const TraceLine& b) { return a.seconds > b.seconds; });
  for (const TraceLine& line : lines) {
    const double seconds = std::max(line.seconds, 1e-12);
    print(out, "  %9.4f %5.1f%% %8.1f %9.2f", line.seconds / passes * 1e3,
          100 * line.seconds / phase.seconds, static_cast<double>(line.calls) / passes,
          line.seconds / static_cast<double>(line.calls) * 1e6);
    for (const double amount : {line.bytes, line.operations}) {
      if (amount > 0) {
        print(out, " %9.2f", amount / seconds * 1e-9);
      } else {
        print(out, " %9s", "");
      }
    }
    print(out, "  %s\n", line.name.c_str());
  }
}

}  // namespace

TracingBackend::TracingBackend(std::unique_ptr<Backend> backend, Report report)
    : backend_(std::move(backend)), report_(std::move(report)) {}

TracingBackend::~TracingBackend() {
  if (report_ && prefill_.passes + decode_.passes > 0) report_(tables());
}

template <class Operation>
void TracingBackend::timed(Work work, const Operation& operation) {
  const Clock::time_point start = Clock::now();
  operation();
  record(work, start);
}

void TracingBackend::record(Work work, Clock::time_point start) {
  memory().wait();
  const Clock::time_point end = Clock::now();
  if (was_on_host()) name_ += " (on the CPU)";
  const auto found = std::find_if(phase_->lines.begin(), phase_->lines.end(),
                                  [&](const TraceLine& each) { return each.name == name_; });
  TraceLine& line = found != phase_->lines.end() ? *found : phase_->lines.emplace_back();
  if (line.calls == 0) line.name = name_;
  line.seconds += std::chrono::duration<double>(end - start).count();
  phase_->seconds += std::chrono::duration<double>(end - last_end_).count();
  last_end_ = end;
  line.bytes += work.bytes;
  line.operations += work.operations;
  ++line.calls;
}

void TracingBackend::embed(const Weight& table, std::span<const Token> tokens, float scale,
                           Mat out) {
  const auto n = static_cast<int64_t>(tokens.size());
  phase_ = n >= TracePhase::kPrefillTokens ? &prefill_ : &decode_;
  phase_->passes += 1;
  phase_->tokens += n;
  last_end_ = Clock::now();
  name_ = "embed ";
  name_ += format(table.type).name;
  timed({.bytes = static_cast<double>(table.row_bytes) * static_cast<double>(n)},
        [&] { backend_->embed(table, tokens, scale, out); });
}

double TracingBackend::weight_bytes(const Weight& weight) const {
  if (weight.repacked != nullptr) return static_cast<double>(backend_->repacked_bytes(weight));
  return static_cast<double>(weight.row_bytes) * static_cast<double>(weight.rows);
}

void TracingBackend::matmul(ConstMat x, std::span<const Product> products, Precision precision) {
  Work work;
  name_ = "matmul ";
  bool one_type = true;
  for (const Product& product : products) {
    const Weight& weight = *product.weight;
    if (&product != products.data()) name_ += '+';
    name_ += std::to_string(weight.rows);
    one_type = one_type && weight.type == products[0].weight->type;
    work.bytes += weight_bytes(weight);
    work.operations += 2 * values(x) * static_cast<double>(weight.rows);
  }
  name_ += " x " + std::to_string(x.cols) + ' ';
  for (const Product& product : products.first(one_type ? 1 : products.size())) {
    if (&product != products.data()) name_ += '+';
    name_ += format(product.weight->type).name;
  }
  name_ += ' ';
  name_ += precision_name(precision);
  timed(work, [&] { backend_->matmul(x, products, precision); });
}

void TracingBackend::rms_norm(ConstMat x, const float* weight, float eps, Mat out) {
  name_ = "rms_norm " + std::to_string(x.cols);
  timed({}, [&] { backend_->rms_norm(x, weight, eps, out); });
}

void TracingBackend::layer_norm(ConstMat x, const float* weight, const float* bias, float eps,
                                Mat out) {
  name_ = "layer_norm " + std::to_string(x.cols);
  timed({}, [&] { backend_->layer_norm(x, weight, bias, eps, out); });
}

void TracingBackend::rope(Mat x, int head_dim, RopeLayout layout, ConstMat cos, ConstMat sin) {
  name_ = "rope " + std::to_string(x.cols);
  timed({}, [&] { backend_->rope(x, head_dim, layout, cos, sin); });
}

void TracingBackend::gated(Activation activation, Mat gate, ConstMat up) {
  name_ = "gated " + std::to_string(gate.cols);
  timed({}, [&] { backend_->gated(activation, gate, up); });
}

bool TracingBackend::fused_block(ConstMat x, const GatedBlock& block, Precision in, Precision out) {
  const Clock::time_point start = Clock::now();
  if (!backend_->fused_block(x, block, in, out)) return false;
  const Weight& down = *block.down.weight;
  name_ = "ffn " + std::to_string(down.cols) + " of " + std::to_string(x.cols) + ' ' +
          std::string(format(block.up.weight->type).name) + ' ' + precision_name(in);
  Work work;
  for (const Product* product : {&block.gate, &block.up, &block.down}) {
    const Weight& weight = *product->weight;
    work.bytes += weight_bytes(weight);
    work.operations += 2.0 * static_cast<double>(x.rows * weight.rows * weight.cols);
  }
  record(work, start);
  return true;
}

void TracingBackend::add(Mat x, ConstMat y) {
  name_ = "add " + std::to_string(x.cols);
  timed({}, [&] { backend_->add(x, y); });
}

void TracingBackend::add_rms_norm(Mat x, ConstMat y, const float* weight, float eps, Mat out) {
  name_ = "add, rms_norm " + std::to_string(x.cols);
  timed({}, [&] { backend_->add_rms_norm(x, y, weight, eps, out); });
}

void TracingBackend::softcap(float cap, Mat x) {
  name_ = "softcap " + std::to_string(x.cols);
  timed({}, [&] { backend_->softcap(cap, x); });
}

void TracingBackend::clamp(float limit, Mat x) {
  name_ = "clamp " + std::to_string(x.cols);
  timed({}, [&] { backend_->clamp(limit, x); });
}

void TracingBackend::attend(const AttendParams& params, std::span<const AttendTask> tasks) {
  Work work;
  const double group = params.n_heads / std::max(1, params.n_kv_heads);
  for (const AttendTask& task : tasks) {
    for (const HeadView& head : task.heads) {
      const Visible seen = visible_rows(params, task.first_pos, task.q.rows, head);
      work.bytes += static_cast<double>(seen.rows) * (row_bytes(head.k) + row_bytes(head.v));
      work.operations +=
          2 * static_cast<double>(seen.pairs) * group * (params.key_dim + params.value_dim);
    }
  }
  name_ = "attend " + std::to_string(params.n_heads) + '/' + std::to_string(params.n_kv_heads) +
          " heads of " + std::to_string(params.key_dim);
  if (!tasks.empty() && !tasks[0].heads.empty()) {
    const HeadView& head = tasks[0].heads[0];
    name_ += " k=";
    name_ += format_name(head.k.format);
    name_ += " v=";
    name_ += format_name(head.v.format);
  }
  if (params.window > 0) name_ += " window " + std::to_string(params.window);
  timed(work, [&] { backend_->attend(params, tasks); });
}

void TracingBackend::attention_mass(const AttendParams& params, MassOf what,
                                    std::span<const MassTask> tasks) {
  Work work;
  const double group = params.n_heads / std::max(1, params.n_kv_heads);
  for (const MassTask& task : tasks) {
    for (const HeadView& head : task.heads) {
      const Visible seen = visible_rows(params, task.first_pos, task.q.rows, head);
      work.bytes += static_cast<double>(seen.rows) * row_bytes(head.k);
      work.operations += 2 * static_cast<double>(seen.pairs) * group * params.key_dim;
    }
  }
  name_ = "attention mass " + std::to_string(params.n_heads) + '/' +
          std::to_string(params.n_kv_heads) + " heads of " + std::to_string(params.key_dim);
  timed(work, [&] { backend_->attention_mass(params, what, tasks); });
}

int64_t TracingBackend::seal(std::span<const SealJob> jobs) {
  Work work;
  name_ = "seal";
  if (!jobs.empty()) {
    name_ += ' ';
    name_ += format_name(jobs[0].format);
  }
  for (const SealJob& job : jobs) {
    work.bytes += row_bytes(job.format) * job.n_rows;
  }
  int64_t failed = -1;
  timed(work, [&] { failed = backend_->seal(jobs); });
  return failed;
}

std::string TracingBackend::tables() const {
  std::string out = "trace of " + std::string(name()) + ", " +
                    std::to_string(backend_->pool().size()) + " threads\n";
  append_phase(out, "prefill", prefill_);
  append_phase(out, "decode", decode_);
  return out;
}

std::unique_ptr<Backend> trace_if_asked(std::unique_ptr<Backend> backend,
                                        std::string_view destination) {
  if (destination.empty() || destination == "0") return backend;
  if (destination == "1") {
    return std::make_unique<TracingBackend>(
        std::move(backend), [](std::string_view tables) { std::cerr << tables << std::flush; });
  }
  auto file = std::make_shared<std::ofstream>(std::string(destination), std::ios::app);
  if (!*file) {
    throw IoError(
        message("KVENGINE_TRACE: expected a file that can be written, found '", destination, "'"));
  }
  return std::make_unique<TracingBackend>(
      std::move(backend), [file](std::string_view tables) { *file << tables << std::flush; });
}

}  // namespace kve
