// What a side is made of, and whether that fits the rows.
#include <string>

#include "base/error.h"
#include "cache/linalg.h"
#include "cache/registry.h"
#include "cache/side_cache.h"

namespace kve {
namespace {

std::string fitting_groups(int width) {
  std::string out;
  for (const int group : kCacheGroups) {
    if (width % group == 0) out += message(out.empty() ? "" : ", ", group);
  }
  return out;
}

void check_divides(const SideSpec& spec, const std::string& where, std::string_view what, int value,
                   int unit, const std::string& advice) {
  if (value % unit == 0) return;
  throw ConfigError(message("cache ", spec.str(), " does not fit ", where, ": ", what, " ", value,
                            " is not a multiple of ", unit, advice.empty() ? "" : "; ", advice));
}

}  // namespace

int SideSetup::page_width() const {
  const ProjectorSpec& projector = spec.projector;
  if (latent) return basis->view().width;
  if (projector.kind == ProjectorSpec::Kind::mpo) {
    return width() / projector.block * projector.bond();
  }
  if (projector.kind == ProjectorSpec::Kind::think) {
    return (head_dim - projector.pruned_of(head_dim)) * n_heads;
  }
  const bool coded =
      projector.kind == ProjectorSpec::Kind::lowrank && projector.residual == Residual::none;
  return coded ? projector.rank * n_heads : width();
}

int SideSetup::basis_width() const {
  return spec.projector.residual == Residual::none ? page_width() : spec.projector.rank * n_heads;
}

PageFormat SideSetup::coefficients_format() const {
  if (spec.projector.residual == Residual::none) return {};
  CodecSpec codec;
  codec.id = CodecId::f16;
  if (spec.projector.coefficients8) {
    codec.id = CodecId::coded;
    codec.coding = {Coding::asym, 8, Fit::range, ScaleFormat::half};
    codec.per = Per::channel;
    codec.group = kPageTokens;
  }
  return page_format(codec, basis_width(), values);
}

bool SideSetup::has_component_bits(int tier) const {
  const CodecSpec& codec = spec.codec_of(tier);
  return spec.projector.kind == ProjectorSpec::Kind::klt && !values && !codec.is_float() &&
         codec.per == Per::channel && codec.coding.coding == Coding::asym && head_dim % 4 == 0;
}

size_t SideSetup::n_strip_bits() const {
  for (int tier = 0; tier < spec.n_tiers(); ++tier) {
    if (!has_component_bits(tier)) continue;
    return static_cast<size_t>(key_strips(page_width()) * spec.n_tiers());
  }
  return 0;
}

int SideSetup::coefficients() const { return is_joint() ? page_width() : page_width() / n_heads; }

std::string SideSetup::coefficients_name() const {
  const bool ranked = spec.projector.kind == ProjectorSpec::Kind::lowrank;
  if (ranked && spec.projector.residual == Residual::none) return "rank";
  if (spec.projector.bonds[0] > 0) return "the number of coefficients";
  if (spec.projector.kind == ProjectorSpec::Kind::think) return "the number of channels that stay,";
  return values ? "value_dim" : "key_dim";
}

// Groups that fit what they run along.
void SideSetup::check_codec(const CodecSpec& codec, const std::string& where) const {
  if (codec.per == Per::token && codec.group > 0) {
    const std::string fitting = fitting_groups(coefficients());
    const bool is_free = entry_of(codec).is_free;
    check_divides(spec, where, coefficients_name(), coefficients(), codec.group,
                  fitting.empty() ? "no group divides it"
                  : is_free       ? message("groups that divide it: ", fitting)
                                  : message("int8 and int4 do with group=", fitting));
  }
  const CodedPage page = page_format(codec, page_width(), values).coded;
  if (2 * page.outliers >= page.group && page.outliers > 0) {
    throw ConfigError(message("cache ", spec.str(), " does not fit ", where, ": ", page.outliers,
                              " outliers are too many for groups of ", page.group));
  }
}

// Pages that are coded anew never grow.
void SideSetup::check_tiers(const std::string& where) const {
  const auto bytes = [&](int tier) {
    return page_bytes(page_format(spec.codec_of(tier), page_width(), values));
  };
  for (int tier = 1; tier < spec.n_tiers(); ++tier) {
    if (bytes(tier) < bytes(tier - 1)) continue;
    throw ConfigError(message("cache ", spec.str(), " does not fit ", where,
                              ": older: expected pages that become smaller, found ",
                              bytes(tier - 1), " bytes and then ", bytes(tier)));
  }
}

void SideSetup::check(const std::string& where) const {
  using Kind = ProjectorSpec::Kind;
  const ProjectorSpec& projector = spec.projector;
  const std::string dim = values ? "value_dim" : "key_dim";
  if (projector.kind == Kind::mpo) check_divides(spec, where, dim, head_dim, projector.block, "");
  if (projector.kind == Kind::hadamard && hadamard_block(head_dim) == 1) {
    throw ConfigError(message("cache ", spec.str(), " does not fit ", where, ": ", dim, " ",
                              head_dim,
                              " is odd, so hadamard leaves every value as it is; "
                              "rotation does not"));
  }
  if (projector.kind == Kind::lowrank && !projector.calibrated && projector.rank > head_dim) {
    throw ConfigError(message("cache ", spec.str(), " does not fit ", where,
                              ": rank: expected at "
                              "most ",
                              dim, " ", head_dim, ", found ", projector.rank));
  }
  if (spec.codec.is_float()) return;
  for (int tier = 0; tier < spec.n_tiers(); ++tier) check_codec(spec.codec_of(tier), where);
  check_tiers(where);
  if (n_heads == 1 || is_joint()) return;
  check_divides(spec, where, coefficients_name(), coefficients(), values ? 16 : 4, "");
  if (projector.kind == Kind::lowrank || projector.kind == Kind::klt ||
      projector.kind == Kind::think) {
    throw ConfigError(message("cache ", spec.str(), " does not fit ", where,
                              ": group=row puts heads on one page, and every head has a basis of "
                              "its own; group=head does"));
  }
}

}  // namespace kve
