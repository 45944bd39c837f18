// Encoders of the weight types that can be written. `n` is a multiple of the type's block; what
// non-finite or huge values give is said at WeightFormat::encode.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kve {

void encode_f32(const float* src, std::byte* dst, int64_t n);
void encode_f16(const float* src, std::byte* dst, int64_t n);
void encode_bf16(const float* src, std::byte* dst, int64_t n);

// Bit for bit the bytes of gguf.quants.quantize: round to nearest of a scale that spans the block.
void encode_q8_0(const float* src, std::byte* dst, int64_t n);
void encode_q4_0(const float* src, std::byte* dst, int64_t n);
void encode_q4_1(const float* src, std::byte* dst, int64_t n);
void encode_q5_0(const float* src, std::byte* dst, int64_t n);
void encode_q5_1(const float* src, std::byte* dst, int64_t n);

// Scales and minima are searched for the least squared error; see encode_k.cpp.
void encode_q4_k(const float* src, std::byte* dst, int64_t n);
void encode_q5_k(const float* src, std::byte* dst, int64_t n);
void encode_q6_k(const float* src, std::byte* dst, int64_t n);

}  // namespace kve
