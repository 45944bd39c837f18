#include "cache/fit_bases.h"

#include "base/error.h"
#include "cache/anchor.h"
#include "cache/project/allocate_bits.h"
#include "cache/project/hadamard.h"
#include "cache/project/klt.h"
#include "cache/project/low_rank.h"
#include "cache/project/mpo.h"
#include "cache/project/think.h"

namespace kve {
namespace {

// Rows of a side's tail in f32.
struct TailRows {
  std::vector<float> memory;
  Mat rows;

  TailRows(const SideCache& side, int first, int n)
      : memory(static_cast<size_t>(n) * static_cast<size_t>(side.setup().width())),
        rows(memory.data(), n, side.setup().width()) {
    side.read_tail(first, n, rows);
  }
};

// Turns the rows of a page back, as they will be stored.
void turn_back(const SideSetup& setup, RowPositions positions, int row, Mat page) {
  const int anchor = setup.spec.projector.anchor;
  if (anchor == 0 || setup.rotation == nullptr) return;
  BasisView view;
  view.frequencies = setup.rotation->frequencies.data();
  view.n_pairs = static_cast<int32_t>(setup.rotation->frequencies.size());
  view.interleaved = setup.rotation->interleaved;
  if (anchor > 1) return rotate(page, view, positions.anchor(row, anchor, setup.sinks), -1);
  for (int64_t r = 0; r < page.rows; ++r) {
    rotate(page.block(r, 1), view, positions.of(row + r), -1);
  }
}

Klt fit_klt(const SideCache& side, int head, RowPositions positions, const QuerySquares& queries,
            int n_sealed, int n_new) {
  const SideSetup& setup = side.setup();
  const int n = side.fit_rows(0, n_sealed);
  const TailRows tail(side, 0, n);
  KeyStatistics statistics(setup.head_dim);
  for (int row = 0; row < n; row += kPageTokens) {
    const Mat page = tail.rows.block(row, kPageTokens);
    turn_back(setup, positions, side.sizes().sinks + row, page);
    statistics.add_page(page);
  }
  std::vector<double> metric(static_cast<size_t>(setup.head_dim), 1.0);
  if (!setup.values) metric = queries.means(head, n_new);
  if (setup.rotation != nullptr) {
    average_pairs(metric, static_cast<int>(setup.rotation->frequencies.size()),
                  setup.rotation->interleaved);
  }
  return klt_basis(statistics, metric);
}

// The bits of every strip in one tier, for all heads that code components apart there. Heads with
// the same mean of bits share them out among all of their components.
std::vector<std::vector<uint8_t>> bits_in_tier(std::span<const SideSetup* const> setups,
                                               std::span<const Klt> heads, int tier) {
  std::vector<std::vector<uint8_t>> out(setups.size());
  const auto mean_of = [&](size_t head) -> int {
    const SideSetup& setup = *setups[head];
    const bool apart = tier < setup.spec.n_tiers() && setup.has_component_bits(tier);
    return apart ? setup.spec.codec_of(tier).coding.bits : 0;
  };
  for (size_t head = 0; head < setups.size(); ++head) {
    if (mean_of(head) == 0 || !out[head].empty()) continue;
    std::vector<size_t> alike;
    std::vector<std::vector<double>> values;
    for (size_t other = head; other < setups.size(); ++other) {
      if (mean_of(other) != mean_of(head)) continue;
      alike.push_back(other);
      values.push_back(heads[other].eigenvalues);
    }
    const auto bits = allocate_bits(values, mean_of(head));
    for (size_t i = 0; i < alike.size(); ++i) out[alike[i]] = bits[i];
  }
  return out;
}

}  // namespace

std::vector<BasisData> klt_bases(std::span<const SideSetup* const> setups,
                                 std::span<const Klt> heads) {
  std::vector<BasisData> out;
  for (size_t head = 0; head < heads.size(); ++head) {
    const CodecSpec& codec = setups[head]->spec.codec;
    out.push_back(heads[head].basis);
    // Finer codes would show the rounding of an int8 lift (Basis).
    out.back().int8 = !codec.is_float() && codec.coding.bits <= 4;
  }
  for (int tier = 0; tier < static_cast<int>(kMaxTiers); ++tier) {
    const auto bits = bits_in_tier(setups, heads, tier);
    for (size_t head = 0; head < heads.size(); ++head) {
      const SideSetup& setup = *setups[head];
      if (setup.n_strip_bits() == 0 || tier >= setup.spec.n_tiers()) continue;
      std::vector<uint8_t>& all = out[head].strip_bits;
      const size_t end =
          all.size() + setup.n_strip_bits() / static_cast<size_t>(setup.spec.n_tiers());
      all.insert(all.end(), bits[head].begin(), bits[head].end());
      all.resize(end, setup.spec.codec_of(tier).coding.bits);
    }
  }
  return out;
}

namespace {

std::vector<BasisData> fit_klt(const SidesToFit& fitted, int n, const QuerySquares& queries,
                               int n_new) {
  std::vector<const SideSetup*> setups;
  std::vector<Klt> heads;
  for (size_t head = 0; head < fitted.sides.size(); ++head) {
    setups.push_back(&fitted.sides[head].setup());
    heads.push_back(fit_klt(fitted.sides[head], fitted.first_head + static_cast<int>(head),
                            fitted.positions[head], queries, n, n_new));
  }
  return klt_bases(setups, heads);
}

// Of all rows that a head has, its newest ones included.
std::vector<BasisData> fit_think(const SidesToFit& fitted, const QuerySquares& queries, int n_new) {
  std::vector<BasisData> out;
  for (size_t i = 0; i < fitted.sides.size(); ++i) {
    const SideCache& side = fitted.sides[i];
    const int dim = side.setup().head_dim;
    std::vector<float> rows(static_cast<size_t>(side.rows()) * static_cast<size_t>(dim));
    const Mat all(rows.data(), side.rows(), dim);
    side.decode(0, fitted.positions[i], all);
    const std::vector<double> squares =
        queries.means(fitted.first_head + static_cast<int>(i), n_new);
    out.push_back(think_basis(all.block(0, side.rows() - fitted.appended), squares,
                              side.setup().page_width()));
  }
  return out;
}

// Leaves of whole pages what their codes miss.
void leave_error(const SideSetup& setup, Mat rows) {
  const PageFormat format = page_format(setup.spec.codec, setup.page_width(), setup.values);
  std::vector<std::byte> page(page_bytes(format));
  std::vector<std::byte> scratch(encode_scratch(format));
  std::vector<float> shown(static_cast<size_t>(kPageTokens * rows.cols));
  const int width = static_cast<int>(rows.cols);
  for (int64_t first = 0; first < rows.rows; first += kPageTokens) {
    const Mat own = rows.block(first, kPageTokens);
    encode_rows(format, own.data, own.stride, page.data(), 0, kPageTokens, scratch.data());
    decode_rows(format, page.data(), 0, kPageTokens, 0, width, shown.data(), width);
    for (int64_t r = 0; r < own.rows; ++r) {
      for (int c = 0; c < width; ++c) own.row(r)[c] -= shown[static_cast<size_t>(r * width + c)];
    }
  }
}

MpoChain chain_of(const ProjectorSpec& projector) {
  MpoChain out{.sizes = {projector.block}, .bonds = {projector.bonds[0]}};
  if (projector.sizes[0] == 0) return out;
  out.sizes[0] = projector.sizes[0];
  for (size_t i = 1; i < kMaxMpoSizes && projector.sizes[i] > 0; ++i) {
    out.sizes.push_back(projector.sizes[i]);
    out.bonds.push_back(projector.bonds[i]);
  }
  return out;
}

// Of the k-th segment of n rows that are sealed.
BasisData fit_mpo(const Backend& backend, const SideCache& side, int k, int n) {
  const ProjectorSpec& projector = side.setup().spec.projector;
  const MpoChain chain = chain_of(projector);
  int block = 1;
  for (const int size : chain.sizes) block *= size;
  const int width = side.setup().width();
  const int first = k * projector.segment;
  const int rows = side.fit_rows(k, n);
  if (block > kMostGramBlock || width % block != 0) {
    return mpo_basis(TailRows(side, first, rows).rows, chain);
  }
  Gram pieces(block);
  add_mpo_pieces(backend, side.tail_halves(first, rows), rows, width, &pieces);
  return mpo_basis(pieces, width, chain);
}

}  // namespace

BasisData fixed_basis(const ProjectorSpec& projector, int dim) {
  KVE_ASSERT(projector.is_fixed() && projector.kind != ProjectorSpec::Kind::none);
  return projector.kind == ProjectorSpec::Kind::hadamard ? hadamard_basis(dim)
                                                         : rotation_basis(dim, projector.seed);
}

std::vector<BasisData> fit_bases(const Backend& backend, const SidesToFit& fitted, int n,
                                 const QuerySquares& queries, int n_new) {
  using Kind = ProjectorSpec::Kind;
  const std::span<const SideCache> sides = fitted.sides;
  const ProjectorSpec& projector = sides[0].setup().spec.projector;
  if (projector.kind == Kind::klt) return fit_klt(fitted, n, queries, n_new);
  if (projector.kind == Kind::think) return fit_think(fitted, queries, n_new);
  std::vector<BasisData> out;
  for (const SideCache& side : sides) {
    for (int k = 0; k < side.bases_to_fit(n); ++k) {
      if (projector.kind == Kind::mpo) {
        out.push_back(fit_mpo(backend, side, k, n));
        continue;
      }
      const TailRows tail(side, k * projector.segment, side.fit_rows(k, n));
      if (projector.residual == Residual::fitted) leave_error(side.setup(), tail.rows);
      out.push_back(low_rank_basis(tail.rows, projector.rank));
    }
  }
  return out;
}

}  // namespace kve
