// Rows of quantized weights as groups of 32 int8 codes with their scales. The common types are
// compiled here for the instruction set at hand; the others go through their format's function.
#pragma once

#include "formats/weight/q4_0.h"
#include "formats/weight/q4_1.h"
#include "formats/weight/q4_k.h"
#include "formats/weight/q5_0.h"
#include "formats/weight/q5_1.h"
#include "formats/weight/q5_k.h"
#include "formats/weight/q6_k.h"
#include "formats/weight/q8_0.h"
#include "kernels/cpu/isa/isa.h"
#if defined(__AVX2__)
#include "kernels/cpu/isa/unpack_avx2.h"
#endif

namespace kve::KVE_ISA {

#if !defined(__AVX2__)
template <class Block>
static inline void unpack_native(const Block& block, int group, CodeGroup* out) {
  unpack_group(block, group, out);
}
#endif

template <class Block>
static void unpack_blocks(const std::byte* row, int64_t first_group, int64_t n_groups,
                          CodeGroup* out) {
  constexpr int kGroups = Block::kValues / kGroupValues;
  const Block* blocks = reinterpret_cast<const Block*>(row) + first_group / kGroups;
  if (first_group % kGroups == 0 && n_groups % kGroups == 0) {
    for (int64_t b = 0; b < n_groups / kGroups; ++b) {
      // Unrolled, so that shifts and offsets are constants.
      KVE_UNROLL(8)
      for (int group = 0; group < kGroups; ++group) unpack_native(blocks[b], group, out++);
    }
    return;
  }
  for (int64_t g = first_group % kGroups; n_groups > 0; ++g, --n_groups) {
    unpack_native(blocks[g / kGroups], static_cast<int>(g % kGroups), out++);
  }
}

static inline void unpack(const WeightFormat& format, const std::byte* row, int64_t first_group,
                          int64_t n_groups, CodeGroup* out) {
  switch (format.type) {
    case WeightType::q4_0:
      return unpack_blocks<BlockQ4_0>(row, first_group, n_groups, out);
    case WeightType::q4_1:
      return unpack_blocks<BlockQ4_1>(row, first_group, n_groups, out);
    case WeightType::q5_0:
      return unpack_blocks<BlockQ5_0>(row, first_group, n_groups, out);
    case WeightType::q5_1:
      return unpack_blocks<BlockQ5_1>(row, first_group, n_groups, out);
    case WeightType::q8_0:
      return unpack_blocks<BlockQ8_0>(row, first_group, n_groups, out);
    case WeightType::q4_k:
      return unpack_blocks<BlockQ4_K>(row, first_group, n_groups, out);
    case WeightType::q5_k:
      return unpack_blocks<BlockQ5_K>(row, first_group, n_groups, out);
    case WeightType::q6_k:
      return unpack_blocks<BlockQ6_K>(row, first_group, n_groups, out);
    default:
      return format.unpack(row, first_group, n_groups, out);
  }
}

// Whether all 32 values of a group share one scale and minimum.
static inline bool one_scale(WeightType type) {
  switch (type) {
    case WeightType::q4_0:
    case WeightType::q4_1:
    case WeightType::q5_0:
    case WeightType::q5_1:
    case WeightType::q8_0:
    case WeightType::q4_k:
    case WeightType::q5_k:
    case WeightType::q8_k:
    case WeightType::iq4_nl:
    case WeightType::iq4_xs:
    case WeightType::mxfp4:
    case WeightType::tq1_0:
    case WeightType::tq2_0:
      return true;
    default:
      return false;
  }
}

}  // namespace kve::KVE_ISA
