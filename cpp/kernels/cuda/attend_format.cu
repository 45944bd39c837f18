// Which caches the attention kernels read.
#include "base/error.h"
#include "kernels/cuda/attend.h"

namespace kve::cuda {
namespace {

constexpr int kBlockChannels = 16;
constexpr int kMostHeadDim = 256;

bool has_table(Coding coding) {
  return coding == Coding::iq4_nl || coding == Coding::lloyd || coding == Coding::nf4 ||
         coding == Coding::e4m3 || coding == Coding::e5m2;
}

Factors factors_of(const CodedPage& page) {
  switch (page.channels) {
    case Channels::plain:
      return Factors::none;
    case Channels::centred:
      return Factors::means;
    case Channels::scaled:
      return page.per == Per::channel ? Factors::of_tokens : Factors::of_channels;
  }
  return Factors::none;
}

}  // namespace

std::string format_refusal(const PageFormat& format, int first_channel, int n_channels) {
  const auto refuse = [&](const char* what, const auto&... found) {
    return message("cuda: pages of ", format_name(format), ": expected ", what, ", found ",
                   found...);
  };
  if (first_channel % kBlockChannels != 0 || n_channels % kBlockChannels != 0) {
    return refuse("heads of a multiple of 16 channels", n_channels);
  }
  if (n_channels > kMostHeadDim) return refuse("heads of at most 256 channels", n_channels);
  if (format.id != CodecId::coded) return {};
  const CodedPage& page = format.coded;
  if (page.outliers != 0) return refuse("no outliers", page.outliers, " in each group");
  if (page.group % kBlockChannels != 0) {
    return refuse("groups of a multiple of 16 values", page.group);
  }
  const bool has_lines = !page.values && page.per == Per::channel && has_zero(page.coding.coding) &&
                         page.channels == Channels::plain;
  if (page.strip_bits != nullptr && !has_lines) {
    return refuse("codes of one size", "several sizes");
  }
  return {};
}

namespace {

std::string basis_refusal(const BasisView& basis) {
  if (basis.block % kBlockChannels != 0 || basis.block_width % kBlockChannels != 0) {
    return message("cuda: pages in a basis: expected blocks of multiples of 16 values, found ",
                   basis.block, " as ", basis.block_width);
  }
  if (basis.anchor == 0) return {};
  if (basis.anchor != kPageTokens) {
    return message("cuda: pages in a basis: expected an anchor for each page, found one for ",
                   basis.anchor, " tokens");
  }
  if (basis.n_pairs % 4 != 0) {
    return message("cuda: pages in a basis: expected a multiple of 4 rotated pairs, found ",
                   basis.n_pairs);
  }
  return {};
}

}  // namespace

std::string side_refusal(const SideView& side) {
  if (side.coefficients != nullptr) {
    return "cuda: expected pages of rows or of coefficients, found both in one";
  }
  if (side.n_tiers() > kMostTiers) {
    return message("cuda: expected at most ", kMostTiers, " tiers, found ", side.n_tiers());
  }
  for (int tier = 0; tier < side.n_tiers(); ++tier) {
    PageFormat format = side.format_of(tier);
    if (side.bases != nullptr) format.coded.strip_bits = side.bases[tier].strip_bits;
    std::string why = format_refusal(format, side.first_channel, side.n_channels);
    if (!why.empty()) return why;
  }
  return side.bases == nullptr ? std::string() : basis_refusal(side.bases[0]);
}

SideFormat side_format(const PageFormat& format) {
  SideFormat side{.width = format.width};
  if (format.id != CodecId::coded) {
    side.floats = format.id == CodecId::f32    ? FloatKind::f32
                  : format.id == CodecId::bf16 ? FloatKind::bf16
                                               : FloatKind::f16;
    return side;
  }
  const CodedPage& page = format.coded;
  const PageOffsets at = page_offsets(page);
  const Coding coding = page.coding.coding;
  side.coded = true;
  side.values = page.values;
  side.by_token = page.per == Per::token;
  side.log8 = page.coding.scale == ScaleFormat::log8;
  side.has_zero = has_zero(coding);
  side.has_table = has_table(coding);
  side.coding = coding;
  side.bits = page.coding.bits;
  side.group = page.group;
  side.coded_width = coded_width(page);
  side.scales_at = static_cast<uint32_t>(at.scales);
  side.zeros_at = static_cast<uint32_t>(at.zeros);
  side.factors = factors_of(page);
  side.factors_at = static_cast<uint32_t>(at.factors);
  const float zero_code = side.has_table ? 0.0f : -level(coding, page.coding.bits, 0);
  side.zero_level = float_to_half(1024.0f + zero_code) * 0x10001u;
  return side;
}

std::string attend_refusal(const AttendParams& params) {
  for (const int dim : {params.key_dim, params.value_dim}) {
    if (dim % kBlockChannels != 0 || dim < kBlockChannels || dim > kMostHeadDim) {
      return message("cuda: expected heads of a multiple of ", kBlockChannels, " values, at most ",
                     kMostHeadDim, ", found ", dim);
    }
  }
  return {};
}

}  // namespace kve::cuda
