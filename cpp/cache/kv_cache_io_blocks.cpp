#include "cache/kv_cache_io_blocks.h"

#include <algorithm>
#include <cmath>

#include "base/half.h"

namespace kve {
namespace {

constexpr int kMaxQueryHeads = 1 << 16;

template <class T>
void put_all(const T& values, size_t n, StateWriter* out) {
  out->put_bytes(reinterpret_cast<const std::byte*>(values.data()), n * sizeof(values[0]));
}

// Takes bytes before memory is asked for.
template <class T>
void take_all(size_t n, const std::string& where, StateReader* in, CountedVector<T>* values) {
  const std::span<const std::byte> source = in->take(n * sizeof(T), where);
  values->resize(n);
  std::ranges::copy(source, reinterpret_cast<std::byte*>(values->data()));
}

void expect_halves(const std::string& where, std::string_view what,
                   const CountedVector<uint16_t>& halves) {
  for (const uint16_t half : halves) {
    if (std::isfinite(half_to_float(half))) continue;
    throw FormatError(message("cache state, ", where, ": ", what, ": expected finite values"));
  }
}

void expect_sums(const std::string& where, const CountedVector<float>& sums) {
  for (const float sum : sums) {
    if (std::isfinite(sum) && sum >= 0) continue;
    throw FormatError(
        message("cache state, ", where, ": what rows got: expected finite sums of 0 or more"));
  }
}

}  // namespace

void BlockMemoryIo::save(const BlockMemory& memory, int n_tokens, StateWriter* out) {
  const auto rows = static_cast<size_t>(memory.init_rows() + memory.remainder_rows());
  out->put<int32_t>(memory.end_);
  out->put<int32_t>(n_tokens == 0 ? 0 : memory.n_heads_);
  put_all(memory.keys_, rows * static_cast<size_t>(memory.width(false)), out);
  put_all(memory.values_, rows * static_cast<size_t>(memory.width(true)), out);
  put_all(memory.scores_, memory.scores_.size(), out);
  for (const CountedVector<float>& sums : memory.mass_) {
    if (n_tokens == 0) break;
    // Without those of tokens that were rolled back.
    const auto local = static_cast<size_t>(n_tokens - memory.first_local_);
    out->put(static_cast<int32_t>(local));
    for (size_t r = 0; r < local; ++r) out->put(r < sums.size() ? sums[r] : 0.0f);
  }
  put_all(memory.representatives_, memory.representatives_.size(), out);
  std::vector<std::byte> record(memory.store_.record_bytes());
  for (int block = 0; block < memory.store_.size(); ++block) {
    memory.store_.read(block, record);
    out->put_bytes(record.data(), record.size());
  }
}

void BlockMemoryIo::load_block(const std::string& where, StateReader* in, BlockMemory* memory) {
  const BlockSetup& setup = memory->setup_;
  CountedVector<std::byte> record(memory->keys_.get_allocator());
  take_all(memory->store_.record_bytes(), where, in, &record);
  const std::byte* at = record.data();
  std::vector<float> rows;
  for (const std::vector<PageFormat>* side : {&setup.keys, &setup.values}) {
    for (const PageFormat& format : *side) {
      rows.resize(static_cast<size_t>(kPageTokens) * static_cast<size_t>(format.width));
      for (int page = 0; page < setup.pages_per_block(); ++page, at += end_of_page(format)) {
        if (!is_sound(format, at)) {
          throw FormatError(
              message("cache state, ", where, ": expected outliers in order, within their groups"));
        }
        decode_rows(format, at, 0, kPageTokens, 0, format.width, rows.data(), format.width);
        if (!std::ranges::all_of(rows, [](float value) { return std::isfinite(value); })) {
          throw FormatError(message("cache state, ", where, ": blocks: expected finite values"));
        }
      }
    }
  }
  memory->store_.prepare(std::move(record));
  memory->store_.finish();
}

void BlockMemoryIo::load(int n_tokens, int first_pos, const std::string& where, StateReader* in,
                         BlockMemory* memory) {
  const SelectorSpec& spec = memory->setup_.spec;
  const int end = std::max(0, n_tokens - spec.local);
  in->expect<int32_t>(end, message(where, ": tokens that have left the local window"));
  if (first_pos != end / kPageTokens * kPageTokens) {
    refuse_field(where, "first position", end / kPageTokens * kPageTokens, first_pos);
  }
  const auto n_heads = in->get<int32_t>("number of query heads");
  if (n_heads < 0 || n_heads > kMaxQueryHeads || n_heads % memory->setup_.n_kv_heads != 0 ||
      (n_heads == 0 && n_tokens > 0)) {
    refuse_field(where, "number of query heads", "a multiple of those of keys", n_heads);
  }
  if (n_heads > 0) memory->set_heads(n_heads);
  const int blocks = std::max(0, end - spec.init) / spec.block;
  const int init = std::min(end, spec.init);
  const auto remainder = static_cast<size_t>(end - init - blocks * spec.block);
  const size_t rows = static_cast<size_t>(init) + remainder;
  take_all(rows * static_cast<size_t>(memory->width(false)), where, in, &memory->keys_);
  take_all(rows * static_cast<size_t>(memory->width(true)), where, in, &memory->values_);
  take_all(remainder * static_cast<size_t>(n_heads), where, in, &memory->scores_);
  expect_halves(where, "keys", memory->keys_);
  expect_halves(where, "values", memory->values_);
  expect_sums(where, memory->scores_);
  for (size_t h = 0; h < memory->mass_.size(); ++h) {
    // Rows that were taken back have none.
    in->expect<int32_t>(n_tokens - first_pos, message(where, ": rows that got weights"));
    take_all(static_cast<size_t>(n_tokens - first_pos), where, in, &memory->mass_[h]);
    expect_sums(where, memory->mass_[h]);
    memory->pending_[h].resize(memory->mass_[h].size());
  }
  const auto width = static_cast<size_t>(n_heads) * static_cast<size_t>(memory->setup_.key_dim);
  take_all(static_cast<size_t>(blocks) * width, where, in, &memory->representatives_);
  expect_halves(where, "representatives", memory->representatives_);
  for (int block = 0; block < blocks; ++block) load_block(where, in, memory);
  memory->end_ = memory->next_end_ = end;
  memory->first_local_ = first_pos;
}

}  // namespace kve
