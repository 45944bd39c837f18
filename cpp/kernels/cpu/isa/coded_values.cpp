#include <string.h>

#include "kernels/cpu/isa/coded_pages.h"
#include "kernels/cpu/isa/strip_params.h"

namespace kve::KVE_ISA {

static CodedValues carve_coded_values(Carver& carver, int64_t value_dim, int64_t n_vectors) {
  CodedValues values = {};
  values.n_vectors = n_vectors;
  values.basis = -1;
  values.stride = most_strip_sum_floats(value_dim);
  values.sums = carver.take<float>(n_vectors * values.stride);
  values.page_sums = carver.take<float>(n_vectors * values.stride);
  values.strip_memory =
      carver.take<std::byte>(static_cast<int64_t>(most_value_strips_bytes(value_dim)));
  return values;
}

size_t coded_values_bytes(int value_dim) {
  Carver carver(nullptr);
  carve_coded_values(carver, value_dim, kMaxStripVectors);
  return carver.size();
}

static void clear_sums(const CodedValues& values, float* sums) {
  memset(sums, 0, sizeof(float) * static_cast<size_t>(values.n_vectors * values.stride));
}

CodedValues start_coded_values(const AttendChunk& chunk, std::byte* memory) {
  Carver carver(memory);
  CodedValues values =
      carve_coded_values(carver, chunk.v.width, int64_t{chunk.n_tokens} * chunk.n_group);
  values.side = &chunk.v;
  clear_sums(values, values.sums);
  return values;
}

void keep_sums(const AttendChunk& chunk, const AttendState& state, CodedValues* values) {
  values->kept = nullptr;
  if (chunk.kept_floats == 0) return;
  values->kept = chunk.partial + state.value_stride;
  values->kept_stride = state.value_stride + chunk.kept_floats;
  for (int64_t v = 0; v < values->n_vectors; ++v) {
    memset(values->kept + v * values->kept_stride, 0,
           sizeof(float) * static_cast<size_t>(chunk.kept_floats));
  }
}

void finish_coded(CodedValues* values, const AttendState& state) {
  if (!values->open) return;
  const SideArgs& side = *values->side;
  for (int64_t v = 0; v < values->n_vectors; ++v) {
    float* sums = values->sums + v * values->stride;
    close_sums(side.strips[values->basis], sums);
    if (side.bases == nullptr) add(state.sums + v * state.value_stride, sums, side.n_channels);
  }
  if (values->kept != nullptr) {
    for (int64_t v = 0; v < values->n_vectors; ++v) {
      memcpy(values->kept + v * values->kept_stride, values->sums + v * values->stride,
             sizeof(float) * static_cast<size_t>(side.n_channels));
    }
  } else if (side.bases != nullptr) {
    lift_values({side.bases + values->basis, values->sums, values->stride,
                 static_cast<int32_t>(values->n_vectors), state.sums, state.value_stride});
  }
  clear_sums(*values, values->sums);
  values->open = false;
}

// Adds the sums of one page, or what belongs to its channels, to those of all.
static void add_page_sums(const CodedValues& values, int32_t page, const float* weights) {
  const StripSide& side = values.side->strips[values.basis];
  const uint16_t* channels = factors_of(*values.side, page);
  const bool multiplied = side.factors == StripFactors::scale_channels;
  const int64_t width = side.width;
  for (int64_t v = 0; v < values.n_vectors; ++v) {
    const float* from = values.page_sums + v * values.stride;
    float* to = values.sums + v * values.stride;
    F32 total = zero();
    for (int64_t t = 0; t < kStripTokens; t += kLanes) {
      total = total + load(weights + v * kRunStride + t);
    }
    const F32 weight = set(sum(total));
    for (int64_t c = 0; c < width; c += kLanes) {
      const F32 channel = load_f16_n(channels + c, least(kLanes, width - c));
      const F32 some = multiplied ? load(from + c) : weight;
      store(to + c, fma(some, channel, load(to + c)));
    }
  }
}

// Pages of one basis.
static void add_basis(const CodedValues& values, CodedRun pages, const StripRun& run,
                      float* weights) {
  const StripSide& side = values.side->strips[values.basis];
  if (side.factors == StripFactors::scale_tokens) {
    scale_tokens(*values.side, pages, values.n_vectors, weights);
  }
  if (side.factors != StripFactors::scale_channels) {
    add_run(values.strips, run, values.n_vectors, weights, values.sums, values.stride);
    if (side.factors != StripFactors::add_channels) return;
    for (int32_t p = 0; p < pages.n; ++p) {
      add_page_sums(values, pages.first + p, weights + p * kStripTokens);
    }
    return;
  }
  for (int32_t p = 0; p < pages.n; ++p) {
    StripRun one = {};
    put_page(&one, run.pages[p], run.rows[p], run, p);
    clear_sums(values, values.page_sums);
    add_run(values.strips, one, values.n_vectors, weights + p * kStripTokens, values.page_sums,
            values.stride);
    for (int64_t v = 0; v < values.n_vectors; ++v) {
      close_sums(side, values.page_sums + v * values.stride);
    }
    add_page_sums(values, pages.first + p, weights + p * kStripTokens);
  }
}

void add_coded(CodedValues* values, const AttendState& state, CodedRun pages, const StripRun& ahead,
               float* weights) {
  const PageView* views = values->side->pages + pages.first;
  for (int32_t p = 0; p < pages.n;) {
    StripRun run = {};
    const int32_t first = p;
    for (; p < pages.n && views[p].basis == views[first].basis; ++p) {
      put_page(&run, views[p].data, views[p].rows, ahead, p);
    }
    const int32_t basis = views[first].basis;
    if (basis != values->basis) {
      finish_coded(values, state);
      values->basis = basis;
      values->strips = plan_values(values->side->strips[basis], values->strip_memory);
    }
    values->open = true;
    add_basis(*values, {pages.first + first, run.n_pages}, run, weights + first * kStripTokens);
  }
}

}  // namespace kve::KVE_ISA
