// Attention of a span of queries over the local window and over what left it.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/half.h"
#include "cache/blocks/block_memory.h"
#include "cache/blocks/merge_attention.h"
#include "cache/select/selector.h"
#include "kernels/few_rows.h"

namespace kve {

void TurnTable::set(const Rotation& rotation, int64_t first, int64_t n) {
  if (first == first_ && n == n_ && rotation == rotation_) return;
  rotation_ = rotation;
  first_ = first;
  n_ = n;
  const size_t pairs = rotation.frequencies.size();
  cos_.resize(static_cast<size_t>(n) * pairs);
  sin_.resize(static_cast<size_t>(n) * pairs);
  size_t at = 0;
  for (int64_t row = 0; row < n; ++row) {
    for (size_t i = 0; i < pairs; ++i, ++at) {
      const double angle = static_cast<double>(first - row) * rotation.frequencies[i];
      cos_[at] = static_cast<float>(std::cos(angle));
      sin_[at] = static_cast<float>(std::sin(angle));
    }
  }
}

void TurnTable::turn(Backend& backend, Mat rows, int head_dim) const {
  KVE_ASSERT(rows.rows == n_);
  const auto pairs = static_cast<int64_t>(rotation_.frequencies.size());
  const RopeLayout layout =
      rotation_.interleaved ? RopeLayout::interleaved : RopeLayout::half_split;
  backend.rope(rows, head_dim, layout, {cos_.data(), n_, pairs}, {sin_.data(), n_, pairs});
}

// Copies the tokens up to `end` from the local window, keys turned back to position 0.
void BlockMemory::take_rows(Backend& backend, const AttendTask& task, int end, BlockWork* work) {
  rollback();
  const int n = end - end_;
  if (n <= 0) return;
  const auto before = static_cast<size_t>(init_rows() + remainder_rows());
  const auto rows = before + static_cast<size_t>(n);
  // No more at once than what is there asks for: `init` may be any number.
  const auto most =
      static_cast<size_t>(setup_.spec.init + setup_.spec.block + std::max(n, kFewRows));
  const size_t room_rows = std::max(rows, std::min(most, rows + rows / 8 + kPageTokens));
  const auto grow = [&](CountedVector<uint16_t>* memory, int width) {
    const size_t room = room_rows * static_cast<size_t>(width);
    if (memory->capacity() < rows * static_cast<size_t>(width)) memory->reserve(room);
    memory->resize(rows * static_cast<size_t>(width));
  };
  grow(&keys_, width(false));
  grow(&values_, width(true));
  const auto scored =
      static_cast<size_t>(std::max(setup_.spec.block + kFewRows, remainder_rows() + n));
  const size_t scores = scored * static_cast<size_t>(n_heads_);
  if (scores_.capacity() < scores) scores_.reserve(scores);
  next_end_ = end;

  for (const HeadView& head : task.heads) {
    const int first = (end_ - head.first_pos) / kPageTokens;
    const int last = (end - 1 - head.first_pos) / kPageTokens;
    for (const SideView* side : {&head.k, &head.v}) {
      for (int page = first; page <= last; ++page) {
        const PageView& view = side->pages[static_cast<size_t>(page)];
        backend.memory().fetch(view.data, static_cast<size_t>(view.bytes));
      }
    }
  }
  const int k_width = width(false);
  const Mat keys(work->keys.get<float>(static_cast<size_t>(n) * static_cast<size_t>(k_width)), n,
                 k_width);
  const auto row_of = [](const SideView& side, int row) {
    const PageView& page = side.pages[static_cast<size_t>(row / kPageTokens)];
    return reinterpret_cast<const uint16_t*>(page.data) + row % kPageTokens * side.format.width;
  };
  backend.pool().parallel(n, [&](int64_t i) {
    float* key = keys.row(i);
    uint16_t* value = values_.data() + (static_cast<int64_t>(before) + i) * width(true);
    for (const HeadView& head : task.heads) {
      const int row = end_ + static_cast<int>(i) - head.first_pos;
      const uint16_t* from = row_of(head.k, row);
      for (int c = 0; c < setup_.key_dim; ++c) *key++ = half_to_float(from[c]);
      value = std::copy_n(row_of(head.v, row), setup_.value_dim, value);
    }
  });
  work->key_turns.set(*setup_.rotation, -int64_t{end_}, n);
  work->key_turns.turn(backend, keys, setup_.key_dim);
  backend.pool().parallel(n, [&](int64_t i) {
    uint16_t* key = keys_.data() + (static_cast<int64_t>(before) + i) * k_width;
    for (int c = 0; c < k_width; ++c) key[c] = float_to_half(keys.row(i)[c]);
  });
}

// The blocks whose representatives agree most with the mean of the turned queries, all heads
// together.
void BlockMemory::retrieve(Backend& backend, ConstMat turned, BlockWork* work) {
  const int n_blocks = store_.size();
  const int topk = std::min(setup_.spec.topk, n_blocks);
  retrieved_.resize(static_cast<size_t>(topk));
  if (topk == 0) return;
  if (topk == n_blocks) return std::iota(retrieved_.begin(), retrieved_.end(), 0);
  float* mean = work->scores.get<float>(static_cast<size_t>(turned.cols + n_blocks));
  std::vector<double> sums(static_cast<size_t>(turned.cols));
  for (int64_t r = 0; r < turned.rows; ++r) {
    const float* row = turned.row(r);
    for (size_t c = 0; c < sums.size(); ++c) sums[c] += row[c];
  }
  for (size_t c = 0; c < sums.size(); ++c) {
    mean[c] = static_cast<float>(sums[c] / static_cast<double>(turned.rows));
  }
  const Weight weight{.type = WeightType::f16,
                      .rows = n_blocks,
                      .cols = turned.cols,
                      .row_bytes = static_cast<size_t>(turned.cols) * sizeof(uint16_t),
                      .data = reinterpret_cast<const std::byte*>(representatives_.data())};
  float* scores = mean + turned.cols;
  const Product product{&weight, Mat(scores, 1, n_blocks), nullptr};
  backend.matmul(ConstMat(mean, 1, turned.cols), {&product, 1}, Precision::exact);
  std::transform(scores, scores + n_blocks, scores, orderly);
  std::ranges::copy(top_rows({scores, static_cast<size_t>(n_blocks)}, topk), retrieved_.begin());
}

// Of every kv head: the first tokens as sinks, the retrieved blocks as pages, the remainder as
// tail.
std::span<const HeadView> BlockMemory::far_views(BlockWork* work) {
  const std::span<const std::byte* const> records = store_.fetch(retrieved_);
  const int init = init_rows();
  const auto per_side = records.size() * static_cast<size_t>(setup_.pages_per_block());
  work->pages.clear();
  work->pages.reserve(2 * per_side * static_cast<size_t>(setup_.n_kv_heads));
  work->heads.clear();
  const int n_rows = init + static_cast<int>(per_side) * kPageTokens + remainder_rows();
  HeadView empty;
  empty.n_rows = n_rows;
  empty.page_offset = init % kPageTokens;
  work->heads.assign(static_cast<size_t>(setup_.n_kv_heads), empty);
  size_t offset = 0;
  for (const bool values : {false, true}) {
    const int dim = values ? setup_.value_dim : setup_.key_dim;
    const uint16_t* rows = (values ? values_ : keys_).data();
    for (int h = 0; h < setup_.n_kv_heads; ++h) {
      const PageFormat& format = (values ? setup_.values : setup_.keys)[static_cast<size_t>(h)];
      const size_t first = work->pages.size();
      for (const std::byte* record : records) {
        for (int page = 0; page < setup_.pages_per_block(); ++page) {
          work->pages.push_back({.data = record + offset + page * end_of_page(format),
                                 .bytes = static_cast<int32_t>(page_bytes(format)),
                                 .rows = kPageTokens});
        }
      }
      offset += static_cast<size_t>(setup_.pages_per_block()) * end_of_page(format);
      HeadView& head = work->heads[static_cast<size_t>(h)];
      SideView& side = values ? head.v : head.k;
      side.width = dim;
      side.format = format;
      side.n_channels = dim;
      side.pages = std::span(work->pages).subspan(first, per_side);
      side.sinks = rows + h * dim;
      side.sink_rows = init;
      side.tail = rows + int64_t{init} * width(values) + h * dim;
      side.tail_rows = remainder_rows();
      side.row_stride = width(values);
    }
  }
  return work->heads;
}

// Queries from the first on that sees anything, merged with what they saw of the local window.
void BlockMemory::attend_far(Backend& backend, const AttendParams& params, const AttendTask& task,
                             float* sums, float* far_sums, BlockWork* work) {
  const int64_t n = task.q.rows;
  const Mat turned(work->queries.get<float>(static_cast<size_t>(n * task.q.cols)), n, task.q.cols);
  for (int64_t r = 0; r < n; ++r) std::copy_n(task.q.row(r), task.q.cols, turned.row(r));
  work->query_turns.set(*setup_.rotation, int64_t{setup_.spec.local} - 1 - task.first_pos, n);
  work->query_turns.turn(backend, turned, setup_.key_dim);
  retrieve(backend, turned, work);
  const std::span<const HeadView> heads = far_views(work);
  // Each query sees one row of the remainder more than the one before, and the last sees all.
  const int64_t n_rows = heads[0].n_rows;
  const int64_t first = std::max<int64_t>(0, n - n_rows);
  const int64_t seeing = n - first;
  const Mat out(work->out.get<float>(static_cast<size_t>(seeing * task.out.cols)), seeing,
                task.out.cols);
  const AttendTask far{turned.block(first, seeing), heads, static_cast<int32_t>(n_rows - seeing),
                       out, far_sums};
  backend.attend(params, {&far, 1});
  backend.fetch(task.out);
  merge_attention(backend.pool(), params.n_heads, out, far_sums, task.out.block(first, seeing),
                  sums + first * params.n_heads);
  backend.send(task.out);
}

// What local rows get of every query head: heads of queries are given rows of their own, as if
// there were as many kv heads.
void BlockMemory::weigh(Backend& backend, const AttendParams& params, const AttendTask& task,
                        const float* sums, BlockWork* work) {
  const auto n_rows = static_cast<size_t>(task.heads[0].n_rows);
  work->heads.clear();
  work->mass.clear();
  for (size_t h = 0; h < mass_.size(); ++h) {
    for (CountedVector<float>* rows : {&mass_[h], &pending_[h]}) {
      if (n_rows > rows->capacity()) rows->reserve(n_rows + n_rows / 8 + 16);
      rows->resize(n_rows);
    }
    work->heads.push_back(task.heads[h / static_cast<size_t>(group())]);
    work->mass.push_back(pending_[h].data());
  }
  AttendParams apart = params;
  apart.n_kv_heads = params.n_heads;
  const MassTask mass{task.q, work->heads, task.first_pos, sums, work->mass};
  backend.attention_mass(apart, MassOf::sum, {&mass, 1});
}

void BlockMemory::attend(Backend& backend, const AttendParams& params, const AttendTask& task,
                         BlockWork* work) {
  const int64_t n = task.q.rows;
  KVE_ASSERT(params.window == 0 && params.alibi == nullptr);
  KVE_ASSERT(n <= setup_.spec.span);
  set_heads(params.n_heads);
  take_rows(backend, task, task.first_pos + static_cast<int>(n) - setup_.spec.local, work);
  const auto n_sums = static_cast<size_t>(n * params.n_heads);
  float* sums = work->sums.get<float>(2 * n_sums);
  AttendParams local_params = params;
  local_params.window = setup_.spec.local;
  AttendTask local = task;
  local.log_sums = sums;
  backend.attend(local_params, {&local, 1});
  if (next_end_ > 0) attend_far(backend, params, task, sums, sums + n_sums, work);
  weigh(backend, local_params, local, sums, work);
  if (task.log_sums != nullptr) std::copy_n(sums, n_sums, task.log_sums);
}

}  // namespace kve
