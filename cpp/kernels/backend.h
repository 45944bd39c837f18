// kernels/: how to compute. A device offers the operations below; the CPU's are the definition of
// correct. Operands are views of memory owned by the caller, and plain data describing the cache.
//
// One forward pass uses a backend at a time (the model serialises them), so an implementation may
// keep scratch memory between calls. Results do not depend on the number of threads.
//
// Operands may lie anywhere in the host's memory. On a device they cost least where Backend::
// memory() gave the memory, or keep() was told of them: others are sent there and back, and the
// results are then there when the operation returns. What memory() gave is for the host to read
// after fetch(), and for the device to read after send() where the host has written it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/memory_source.h"
#include "base/span.h"
#include "base/thread_pool.h"
#include "base/token.h"
#include "formats/cache_codecs.h"
#include "formats/weight_formats.h"
#include "kernels/basis_view.h"
#include "kernels/half_dots.h"
#include "kernels/page_view.h"
#include "kernels/product.h"

namespace kve {

enum class RopeLayout : uint8_t {
  interleaved,  // pairs (2i, 2i + 1): GGUF llama
  half_split,   // pairs (i, i + rotary_dim / 2): "neox"
};

// Rows of one side (keys or values) of one layer and kv head, oldest first: sinks, pages, tail.
struct SideView {
  int32_t width = 0;  // values per row of this head
  // A page holds the rows of one head or of all; this head's coefficients (values, where the rows
  // have no basis) are n_channels from first_channel on.
  PageFormat format{};
  std::span<const PageFormat> older;  // of tiers 1, 2, ... (PageView::basis)
  // Pages whose rows are the sum of a lift and of codes have coefficients behind the codes.
  const PageFormat* coefficients = nullptr;
  int32_t first_channel = 0;
  int32_t n_channels = 0;
  std::span<const PageView> pages;
  const BasisView* bases = nullptr;  // of this head, by PageView::basis; null: there are none
  // f16 rows, row_stride values apart.
  const uint16_t* sinks = nullptr;
  int32_t sink_rows = 0;
  const uint16_t* tail = nullptr;
  int32_t tail_rows = 0;
  int32_t row_stride = 0;

  int n_tiers() const { return 1 + static_cast<int>(older.size()); }
  const PageFormat& format_of(int tier) const {
    return tier == 0 ? format : older[static_cast<size_t>(tier - 1)];
  }
};
// Row r holds the token at position first_pos + r, or at positions[r] where tokens were dropped.
// Both sides hold the same tokens, but may be split between pages and tail at different rows. Pages
// begin at positions that exceed a multiple of kPageTokens by page_offset; with `positions`, at
// such rows.
struct HeadView {
  SideView k;
  SideView v;
  int32_t n_rows = 0;
  int32_t first_pos = 0;
  int32_t page_offset = 0;
  // [n_rows], rising, from the row of the oldest query on by one; first_pos is then 0, and there is
  // no window. Null: consecutive.
  const int32_t* positions = nullptr;
  // Bit r % 64 of word r / 64: no query sees row r. [ceil(n_rows / 64)], or null.
  const uint64_t* dead = nullptr;
};

struct AttendParams {
  int n_heads = 0;
  int n_kv_heads = 0;  // query head h reads kv head h / (n_heads / n_kv_heads)
  int key_dim = 0;
  int value_dim = 0;
  float scale = 1;
  float softcap = 0;             // 0: none; else scores become softcap * tanh(score / softcap)
  int window = 0;                // 0: none; else a query at p sees positions > p - window
  const float* alibi = nullptr;  // [n_heads] slopes or null
  // fast: queries, rows and weights may be rounded to bf16, unless a side is f32; the sums are f32.
  Precision precision = Precision::exact;
};
// Consecutive queries of one sequence; the query in row i is at position first_pos + i and sees
// positions up to its own.
struct AttendTask {
  ConstMat q;                       // [n, n_heads * key_dim], rotated
  std::span<const HeadView> heads;  // [n_kv_heads]
  int32_t first_pos = 0;
  Mat out;  // [n, n_heads * value_dim]
  // [n, n_heads]: receives the base 2 logarithms of the sums of e^score over what a query sees, or
  // null.
  float* log_sums = nullptr;
  // With log_sums: [n_kv_heads] arrays of the head's n_rows, to which the weights that the queries
  // give each row are added, as attention_mass() would; or empty.
  std::span<float* const> mass = {};
};

// How the weights that several queries give a row become one number.
enum class MassOf : uint8_t { sum, most };
// Attention as in AttendTask, of which only the weights are wanted.
struct MassTask {
  ConstMat q;
  std::span<const HeadView> heads;
  int32_t first_pos = 0;
  const float* log_sums = nullptr;  // [n, n_heads], as attend() gave them
  std::span<float* const> mass;     // [n_kv_heads] arrays of the head's n_rows
};

// Rows to be coded into a page, from f32 or (when f32 is null) from f16 memory: turned back to
// their anchor and written in a basis, where there is one.
// The f16 tail is written the same way, as one f16 page of any number of rows: first_row and n_rows
// may then exceed kPageTokens.
struct SealJob {
  PageFormat format{};
  const BasisView* basis = nullptr;
  const float* f32 = nullptr;  // [n_rows, width], row stride `stride`
  const uint16_t* f16 = nullptr;
  int64_t stride = 0;
  int32_t n_rows = 0;
  int32_t width = 0;     // values per row
  int32_t position = 0;  // of the first row
  // Of all rows of the page, from its row 0 on, where they are not consecutive; and HeadView's
  // page_offset, which is for these only.
  const int32_t* positions = nullptr;
  int32_t page_offset = 0;
  std::byte* page = nullptr;
  int32_t first_row = 0;
  // Above 0: rows are those of so many joined heads, which are turned back one by one and have one
  // dense basis.
  int32_t latent_heads = 0;
  // Instead of rows: the numbers that another page holds, coefficients where its rows have a basis,
  // which are coded anew.
  const std::byte* coded = nullptr;
  PageFormat coded_format{};
  // Of width above 0: a row is kept as the sum of a lift of coefficients in `basis`, which lie
  // behind the codes, and of codes in its own channels. Either part is of what the other, which
  // comes first, leaves of the row.
  PageFormat coefficients{};
  bool codes_first = false;
  int32_t layer = 0;  // that end_pass() names
};

// How attention reads pages: as they lie in memory; after it has rebuilt their rows; or, where the
// backend is a device that does not know them, on the CPU. From best to worst.
enum class ReadPath : uint8_t { fused, rebuilt, host };

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // e.g. "cpu-avx512"
  virtual ThreadPool& pool() = 0;
  virtual MemorySource& memory() { return host_memory(); }
  void fetch(ConstMat mat) { memory().fetch(mat.data, bytes_of(mat)); }
  void send(ConstMat mat) { memory().send(mat.data, bytes_of(mat)); }
  // What one thread has done between the two is a forward pass, which is like the one before as a
  // rule. A device need not begin before it ends, unless the host asks for results. The latter
  // waits, and returns the first layer of the pass that had rows to seal() which are not finite, or
  // -1. A pass that fails ends with cancel_pass(), which may be called at any time.
  virtual void begin_pass() {}
  virtual int32_t end_pass() { return -1; }
  virtual void cancel_pass() noexcept {}
  // Bytes that stay as they are and where they are as long as this backend is used.
  virtual void keep(std::span<const std::byte> /*constants*/) {}
  // Whether the latest operation was computed by the CPU, although this backend is a device.
  virtual bool was_on_host() const { return false; }

  // Bytes of the layout that this backend reads faster than the file's; 0 when it has none.
  virtual size_t repacked_bytes(const Weight& weight) const = 0;
  // Writes it to `memory`, 64-byte aligned, which weight.repacked may then point to.
  virtual void repack(const Weight& weight, std::byte* memory) = 0;

  // out[i] = scale * row tokens[i] of `table`.
  virtual void embed(const Weight& table, std::span<const Token> tokens, float scale, Mat out) = 0;
  // All products read the same x [n, cols]; each weight has cols == x.cols.
  virtual void matmul(ConstMat x, std::span<const Product> products, Precision precision) = 0;
  // out = x / rms(x) * weight per row; `out` may be x. weight [x.cols].
  virtual void rms_norm(ConstMat x, const float* weight, float eps, Mat out) = 0;
  // out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias per row (arXiv:1607.06450); `out`
  // may be x. weight [x.cols]; bias [x.cols] or null. Rows do not depend on each other.
  virtual void layer_norm(ConstMat x, const float* weight, const float* bias, float eps, Mat out);
  // Rotates every head of every row in place. cos, sin: [x.rows, rotary_dim / 2].
  virtual void rope(Mat x, int head_dim, RopeLayout layout, ConstMat cos, ConstMat sin) = 0;
  // gate = activation(gate) * up; without data in `up`: * 1.
  virtual void gated(Activation activation, Mat gate, ConstMat up) = 0;
  // Computes down.y from x [n, cols] at once, if that is faster than matmul(), gated() and matmul()
  // with the precisions `in` and `out`, and differs in the rounding of second planes only; gate.y
  // and up.y are then left as they are. Else returns false and does nothing.
  virtual bool fused_block(ConstMat /*x*/, const GatedBlock& /*block*/, Precision /*in*/,
                           Precision /*out*/) {
    return false;
  }
  // x += y.
  virtual void add(Mat x, ConstMat y) = 0;
  // Both, one after the other: x += y, out = x / rms(x) * weight. `out` is neither x nor y.
  virtual void add_rms_norm(Mat x, ConstMat y, const float* weight, float eps, Mat out) {
    add(x, y);
    rms_norm(x, weight, eps, out);
  }
  // x = cap * tanh(x / cap).
  virtual void softcap(float cap, Mat x) = 0;
  // Every value to [-limit, limit].
  virtual void clamp(float limit, Mat x) = 0;
  virtual void attend(const AttendParams& params, std::span<const AttendTask> tasks) = 0;
  // mass[kv head][row] becomes its sum with, or the larger of it and, the weights that the queries
  // of all query heads that read the kv head give the row: e^score over their sum.
  virtual void attention_mass(const AttendParams& params, MassOf what,
                              std::span<const MassTask> tasks) = 0;
  // How few queries attend to the side's pages in this precision.
  virtual ReadPath read_path(const SideView& side, Precision precision) const = 0;
  // May be called from several threads at once.
  virtual void dot_halves(const HalfDots& job) const = 0;
  // The same. Returns how many pieces were added.
  virtual int64_t add_gram(const HalfGram& job) const = 0;
  // Codes all jobs, no two of which write to one page of codes; returns the index of a job that
  // holds a NaN or infinity, or -1. Within a pass a device may leave that to end_pass().
  virtual int64_t seal(std::span<const SealJob> jobs) = 0;

 private:
  static size_t bytes_of(ConstMat mat) {
    if (mat.rows == 0) return 0;
    return static_cast<size_t>((mat.rows - 1) * mat.stride + mat.cols) * sizeof(float);
  }
};

// The CPU backend; `isa` is "scalar", "avx2", "avx512", ... or empty for the best this machine has
// (the environment variable KVENGINE_ISA overrides). Throws ConfigError for an unknown or
// unavailable name, naming those that are.
std::unique_ptr<Backend> make_cpu_backend(int n_threads, std::string_view isa = {});

}  // namespace kve
