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

}  // namespace

std::string format_refusal(const PageFormat& format, int first_channel, int n_channels) {
  const auto refuse = [&](const char* what, const auto&... found) {
    return message("cuda: pages of ", format_name(format), ": expected ", what, ", found ",
                   found...);
  };
  if (first_channel % kBlockChannels != 0 || n_channels % kBlockChannels != 0) {
    return refuse("heads of a multiple of 16 channels", n_channels);
  }
  if (format.id == CodecId::f32) return refuse("numbers of 16 bits or codes", "f32");
  if (format.id != CodecId::coded) return {};
  const CodedPage& page = format.coded;
  if (page.channels != Channels::plain) return refuse("no factors of channels or tokens", "some");
  if (page.outliers != 0) return refuse("no outliers", page.outliers, " in each group");
  if (page.strip_bits != nullptr) return refuse("codes of one size", "several sizes");
  if (page.group % kBlockChannels != 0) {
    return refuse("groups of a multiple of 16 values", page.group);
  }
  return {};
}

SideFormat side_format(const PageFormat& format) {
  SideFormat side{.width = format.width};
  if (format.id != CodecId::coded) {
    side.is_bf16 = format.id == CodecId::bf16;
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
  side.scales_at = static_cast<uint32_t>(at.scales);
  side.zeros_at = static_cast<uint32_t>(at.zeros);
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
  if (params.alibi != nullptr) {
    return "cuda: expected attention without linear biases, found alibi";
  }
  return {};
}

}  // namespace kve::cuda
