// Qualifiers for small functions in headers that per-ISA objects and CUDA sources also include.
#pragma once

// Internal linkage on purpose: an object compiled for AVX-512 must not export a weak symbol that
// the linker could pick for the whole program (tools/check verifies it).
#ifdef __CUDACC__
#define KVE_HD static inline __host__ __device__
#else
#define KVE_HD static inline
#endif
