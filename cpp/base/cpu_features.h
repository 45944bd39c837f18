// What the processor and the operating system allow, asked once per process.
#pragma once

#include <cstddef>

namespace kve {

struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA, F16C, BMI1, BMI2
  bool avx512 = false;       // the above and AVX-512 F, BW, CD, DQ, VL, VNNI, VBMI
  bool avx512_bf16 = false;  // the above and AVX-512 BF16
  bool slow_bf16 = false;    // whose dot products take several times as long as those of int16
  bool amx = false;          // avx512 and the tile unit, AMX, for bf16
  bool neon = false;         // the baseline of AArch64
  bool dotprod = false;      // its int8 dot product (FEAT_DotProd)
};

const CpuFeatures& cpu_features();

// Of the cache nearest to memory; a cautious guess where the system does not say.
size_t last_level_cache_bytes();

}  // namespace kve
