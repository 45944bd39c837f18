#include "kernels/cpu/strip_side.h"

#include <array>

#include "base/error.h"

namespace kve {
namespace {

constexpr int kMostTableBits = 4;
// From so many bits on, queries are rounded to two int8 planes instead of one. Weights never are:
// with one, caches of 8 bits differ no more from exact ones.
constexpr int kLeastFineBits = 5;

StripLevels levels_of(Coding coding) {
  switch (coding) {
    case Coding::asym:
    case Coding::q5_1:
    case Coding::q4_1:
      return StripLevels::code;
    case Coding::sym:
    case Coding::q8_0:
    case Coding::q5_0:
    case Coding::q4_0:
      return StripLevels::centred;
    default:
      return StripLevels::table;
  }
}

using LevelTable = std::array<float, 1 << kMostTableBits>;

LevelTable make_table(Coding coding, int bits) {
  LevelTable table{};
  for (unsigned code = 0; code < 1u << bits; ++code) table[code] = level(coding, bits, code);
  return table;
}

const float* table_of(Coding coding, int bits) {
  static const LevelTable kIq4 = make_table(Coding::iq4_nl, 4);
  static const LevelTable kNf4 = make_table(Coding::nf4, 4);
  static const std::array<LevelTable, kMostTableBits> kLloyd = {
      make_table(Coding::lloyd, 1), make_table(Coding::lloyd, 2), make_table(Coding::lloyd, 3),
      make_table(Coding::lloyd, 4)};
  if (coding == Coding::iq4_nl) return kIq4.data();
  if (coding == Coding::nf4) return kNf4.data();
  return kLloyd[static_cast<size_t>(bits - 1)].data();
}

// Whether the parameters of this head's coefficients are those of whole groups, or of one.
bool has_whole_groups(const SideView& side, int group) {
  const int end = side.first_channel + side.n_channels;
  if (side.first_channel / group == (end - 1) / group) return true;
  return group % 16 == 0 && side.first_channel % group == 0;
}

bool reads_strips(const SideView& side, int tier) {
  const PageFormat& format = side.format_of(tier);
  if (format.id != CodecId::coded || side.coefficients != nullptr) return false;
  // Coefficients of several heads at once: scratch memory is for those of one.
  if (side.n_channels > side.width) return false;
  const CodedPage& page = format.coded;
  const Coding coding = page.coding.coding;
  if (coding == Coding::e4m3 || coding == Coding::e5m2 || page.outliers > 0) return false;
  // 1: every row has an anchor of its own, so no one query serves a page.
  if (side.bases != nullptr && side.bases[0].anchor != 0 && side.bases[0].anchor != kPageTokens) {
    return false;
  }
  if (side.n_channels > kMaxStripWidth) return false;
  const bool own_bits = side.bases != nullptr && side.bases[tier].strip_bits != nullptr;
  if (own_bits && (page.values || page.per != Per::channel)) return false;
  if (own_bits && levels_of(coding) == StripLevels::table) return false;
  if (side.first_channel % (page.values ? 16 : 4) != 0) return false;
  if (page.per == Per::channel) return page.group % 16 == 0;
  return has_whole_groups(side, page.group);
}

}  // namespace

bool reads_strips(const SideView& side) {
  for (int tier = 0; tier < side.n_tiers(); ++tier) {
    if (!reads_strips(side, tier)) return false;
  }
  return true;
}

StripSide strip_side(const SideView& side, int basis) {
  KVE_ASSERT(reads_strips(side));
  CodedPage page = side.format_of(basis % side.n_tiers()).coded;
  if (side.bases != nullptr) page.strip_bits = side.bases[basis].strip_bits;
  const int first_strip = page.values ? side.first_channel / 16 * 4 : side.first_channel / 4;
  const PageOffsets at = page_offsets(page);
  const bool per_channel = page.per == Per::channel;
  const bool one_group =
      !per_channel &&
      side.first_channel / page.group == (side.first_channel + side.n_channels - 1) / page.group;
  StripSide out = {
      .width = side.n_channels,
      .bits = page.coding.bits,
      .strip_bits = page.strip_bits == nullptr ? nullptr : page.strip_bits + first_strip,
      .levels = levels_of(page.coding.coding),
      .per_channel = per_channel,
      .group = one_group ? side.n_channels : page.group,
      .scale_bytes = static_cast<int32_t>(scale_size(page)),
      .has_zero = has_zero(page.coding.coding),
      .scaled_width = coded_width(page) - side.first_channel,
      .scale_stride = per_channel ? coded_width(page) : kPageTokens,
      .zero_stride = per_channel ? page.width : kPageTokens,
      .scale_offset = at.scales,
      .zero_offset = at.zeros,
      .planes = page.coding.bits >= kLeastFineBits && !page.values ? 2 : 1,
  };
  if (out.levels == StripLevels::table) out.table = table_of(page.coding.coding, page.coding.bits);
  if (page.channels == Channels::centred) out.factors = StripFactors::add_channels;
  if (page.channels == Channels::scaled) {
    out.factors = per_channel ? StripFactors::scale_tokens : StripFactors::scale_channels;
  }
  for (int s = 0; s < first_strip; ++s) out.code_offset += strip_bytes(bits_of_strip(page, s));
  const auto entry = static_cast<size_t>(
      per_channel ? side.first_channel : side.first_channel / page.group * kPageTokens);
  out.scale_offset += entry * static_cast<size_t>(out.scale_bytes);
  out.zero_offset += entry * 2;
  out.factor_offset = at.factors;
  if (out.factors != StripFactors::scale_tokens) {
    out.factor_offset += static_cast<size_t>(side.first_channel) * 2;
  }
  return out;
}

}  // namespace kve
