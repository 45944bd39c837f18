#include "cache/kept_head.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>

namespace kve {
namespace {

size_t words(size_t rows) { return (rows + 63) / 64; }

// Grows in steps that are small against what is there, as tails do.
template <class T>
void reserve(CountedVector<T>* memory, size_t n) {
  if (n > memory->capacity()) memory->reserve(n + n / 8 + 16);
}

}  // namespace

KeptHead::KeptHead(const std::shared_ptr<MemoryCounter>& counter)
    : positions(CountedAllocator<int32_t>(counter)),
      dead(CountedAllocator<uint64_t>(counter)),
      doomed(CountedAllocator<int32_t>(counter)),
      mass(CountedAllocator<float>(counter)),
      pending(CountedAllocator<float>(counter)) {}

int KeptHead::rows_before(int n) const {
  return static_cast<int>(std::ranges::lower_bound(positions, n) - positions.begin());
}

std::vector<float> KeptHead::masses(int n) const {
  std::vector<float> sums(mass.begin(), mass.begin() + n);
  if (!pending.empty())
    std::transform(sums.begin(), sums.end(), pending.begin(), sums.begin(), std::plus<>{});
  return sums;
}

std::vector<int32_t> KeptHead::live_rows(int n) const {
  std::vector<int32_t> rows(static_cast<size_t>(n));
  if (n_dead == 0) {
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }
  size_t count = 0;
  for (int first = 0; first < n; first += 64) {
    uint64_t live = ~dead[static_cast<size_t>(first) / 64];
    if (n - first < 64) live &= (uint64_t{1} << (n - first)) - 1;
    for (; live != 0; live &= live - 1) rows[count++] = first + std::countr_zero(live);
  }
  rows.resize(count);
  return rows;
}

void KeptHead::append(int n, int first_pos, bool weighs) {
  const size_t before = positions.size();
  const size_t after = before + static_cast<size_t>(n);
  reserve(&positions, after);
  reserve(&dead, words(after));
  if (weighs) {
    reserve(&mass, after);
    reserve(&pending, after);
    mass.resize(after);
    pending.resize(after);
  }
  dead.resize(words(after));
  positions.resize(after);
  for (size_t r = before; r < after; ++r) {
    positions[r] = first_pos + static_cast<int32_t>(r - before);
  }
}

void KeptHead::truncate(int n_rows) noexcept {
  const auto n = static_cast<size_t>(n_rows);
  if (n >= positions.size()) return;
  positions.resize(n);
  if (mass.size() > n) mass.resize(n);
  if (pending.size() > n) pending.resize(n);
  dead.resize(words(n));
  if (n % 64 != 0) dead.back() &= (uint64_t{1} << (n % 64)) - 1;
  count_dead();
}

void KeptHead::count_dead() noexcept {
  n_dead = 0;
  for (const uint64_t word : dead) n_dead += std::popcount(word);
}

void KeptHead::commit() noexcept {
  for (size_t r = 0; r < mass.size() && r < pending.size(); ++r) mass[r] += pending[r];
  for (const int32_t row : doomed) {
    dead[static_cast<size_t>(row) / 64] |= uint64_t{1} << (static_cast<size_t>(row) % 64);
  }
  n_dead += static_cast<int>(doomed.size());
  rollback();
}

void KeptHead::rollback() noexcept {
  if (mass.empty()) {
    pending.clear();
  } else {
    std::ranges::fill(pending, 0.0f);
  }
  doomed.clear();
}

KeptHead KeptHead::with_rows(std::span<const int32_t> kept, bool reassign) const {
  KeptHead out(positions.get_allocator().counter());
  out.positions.resize(kept.size());
  out.dead.resize(words(kept.size()));
  if (!mass.empty()) out.mass.resize(kept.size());
  for (size_t i = 0; i < kept.size(); ++i) {
    const auto r = static_cast<size_t>(kept[i]);
    out.positions[i] = reassign ? static_cast<int32_t>(i) : positions[r];
    if (!mass.empty()) out.mass[i] = mass_of(kept[i]);
  }
  return out;
}

void KeptHead::forget_mass() noexcept {
  CountedVector<float>(mass.get_allocator()).swap(mass);
  CountedVector<float>(pending.get_allocator()).swap(pending);
}

size_t KeptHead::bytes() const {
  return (positions.capacity() + doomed.capacity()) * sizeof(int32_t) +
         dead.capacity() * sizeof(uint64_t) +
         (mass.capacity() + pending.capacity()) * sizeof(float);
}

}  // namespace kve
