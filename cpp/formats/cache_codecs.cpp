#include "formats/cache_codecs.h"

#include <array>

#include "base/error.h"
#include "formats/cache/bf16.h"
#include "formats/cache/f16.h"
#include "formats/cache/f32.h"
#include "formats/cache/int_group.h"
#include "formats/cache/q4_0.h"
#include "formats/cache/q8_0.h"

namespace kve {
namespace {

template <class Codec>
size_t codes_of(int rows, int width, int group) {
  return code_bytes(Codec{}, rows, width, group);
}

template <class Codec>
size_t scales_of(int rows, int width, int group) {
  return scale_bytes(Codec{}, rows, width, group);
}

template <class Codec>
bool encode(const float* src, int64_t src_stride, std::byte* page, int first_row, int n_rows,
            int width, int group) {
  bool finite = true;
  for (int r = 0; r < n_rows; ++r) {
    finite &= encode_row(Codec{}, src + r * src_stride, page, first_row + r, width, group);
  }
  return finite;
}

template <class Codec>
void decode(const std::byte* page, int first_row, int n_rows, int width, int group, float* dst,
            int64_t dst_stride) {
  for (int r = 0; r < n_rows; ++r) {
    decode_row(Codec{}, page, first_row + r, width, group, dst + r * dst_stride);
  }
}

struct Traits {
  int default_group = 0;
  bool group_is_free = false;
  int default_tail = 0;
  bool scales_follow_codes = false;
};

template <class Codec>
constexpr CacheCodec entry(CodecId id, std::string_view name, std::string_view description,
                           std::string_view paper, Traits traits) {
  return {.id = id,
          .name = name,
          .description = description,
          .paper = paper,
          .default_group = traits.default_group,
          .group_is_free = traits.group_is_free,
          .default_tail = traits.default_tail,
          .code_bytes = &codes_of<Codec>,
          .scale_bytes = &scales_of<Codec>,
          .scales_follow_codes = traits.scales_follow_codes,
          .encode = &encode<Codec>,
          .decode = &decode<Codec>};
}

constexpr Traits kGgmlBlock{.default_group = 32};
constexpr Traits kIntGroup{
    .default_group = 32, .group_is_free = true, .default_tail = 64, .scales_follow_codes = true};

constexpr std::array kCodecs = {
    entry<F32Codec>(CodecId::f32, "f32", "32-bit floats", "IEEE 754", {}),
    entry<F16Codec>(CodecId::f16, "f16", "16-bit floats", "IEEE 754", {}),
    entry<Bf16Codec>(CodecId::bf16, "bf16", "16-bit floats with 8 bits of exponent", "bfloat16",
                     {}),
    entry<Q8_0Codec>(CodecId::q8_0, "q8_0", "ggml blocks: 8-bit codes, a scale per 32 channels",
                     "ggml", kGgmlBlock),
    entry<Q4_0Codec>(CodecId::q4_0, "q4_0", "ggml blocks: 4-bit codes, a scale per 32 channels",
                     "ggml", kGgmlBlock),
    entry<Int8Codec>(CodecId::int8, "int8", "8-bit codes, scale and minimum per group of channels",
                     "2303.06865", kIntGroup),
    entry<Int4Codec>(CodecId::int4, "int4", "4-bit codes, scale and minimum per group of channels",
                     "2303.06865", kIntGroup),
};

}  // namespace

const CacheCodec& codec(CodecId id) {
  const auto index = static_cast<size_t>(id);
  KVE_ASSERT(index < kCodecs.size() && kCodecs[index].id == id);
  return kCodecs[index];
}

const CacheCodec* find_codec(std::string_view name) {
  for (const CacheCodec& entry : kCodecs) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::span<const CacheCodec> cache_codecs() { return kCodecs; }

size_t page_bytes(const CodecSpec& spec, int width) {
  const CacheCodec& c = codec(spec.id);
  return c.code_bytes(kPageTokens, width, spec.group) +
         c.scale_bytes(kPageTokens, width, spec.group);
}

double bits_per_value(const CodecSpec& spec) {
  // A width that every group divides.
  constexpr int kWidth = kLargestGroup;
  return 8.0 * static_cast<double>(page_bytes(spec, kWidth)) / (kPageTokens * kWidth);
}

}  // namespace kve
