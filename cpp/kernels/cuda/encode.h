// Rows into pages and tails: the encoders of formats/, compiled for the device, with the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/cache_codecs.h"

namespace kve::cuda {

// Whether encode() knows the format: floats, and codes without outliers; of which bits differ only
// as those of components of keys do.
bool encodes(const PageFormat& format);

// As in SealJob; of device memory, and so are the format's strip_bits.
struct EncodeJob {
  PageFormat format{};
  const float* f32 = nullptr;  // or, where null:
  const uint16_t* f16 = nullptr;
  int64_t stride = 0;
  int32_t n_rows = 0;
  int32_t first_row = 0;
  std::byte* page = nullptr;
  std::byte* work = nullptr;  // encode_work_bytes(), 16-byte aligned
};
size_t encode_work_bytes(const EncodeJob& job);

// Runs jobs that lie in device memory, no two of which write to one page. failed [n_jobs], zeros at
// first: 1 where a value is NaN or infinite. `together`: failed [1] is of all jobs.
void encode(const EncodeJob* jobs, int n_jobs, bool together, int32_t* failed);

}  // namespace kve::cuda
