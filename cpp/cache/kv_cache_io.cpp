// KvCache as bytes, little-endian:
//   u32 version | string spec | u64 checksum of calibrated bases (if any) | u64 checksum of what
//   duo's gates give each head (if any) | u32 n_layers | n_layers
//   x i32 {n_kv_heads, key_dim, value_dim, window} i32 n_tokens | per layer: i32 first_pos | i64
//   n_queries, f64 sums of their squares (if any) | what a selector keeps (if any) | the sides,
//   keys then values:
//     i32 sink_rows | i32 coded_rows | i32 tail_rows | u32 n_bases, each a u32 length and its bytes
//     (of fitted ones) | pages: i32 basis and its bytes | f16 sinks | f16 tail
// With a selector, i32 {prompt_tokens, selected_at, dropped_at, shift} follow the number of tokens,
// and what it keeps of a layer without a window is: per kv head i32 rows, their positions, u64
// words of dead rows, i32 number of masses, f32 masses | of its queries (if it asks for any) i32
// {n, n_heads, width}, f32 queries, f32 sums | i32 n_heads of moments, i64 how many, their sums (if
// any) | of h2o_bench, once dropped_at is not 0: per query head u64 words of the first dropped_at
// rows that it does not see, and their f32 scores. Where queries read some pages only (quest), the
// same counts follow the number of tokens, and a layer keeps f16 bounds of its whole pages, head by
// head. Of a layer with blocks follow (kv_cache_io_blocks.cpp) i32 {tokens that have left the local
// window, n_heads of queries}, f16 keys and values of the first tokens and the remainder, f32
// scores of the remainder, per query head i32 rows and what they got as f32, f16 representatives,
// and the blocks. A string is a u32 length and its bytes. Rows that the last page does not have are
// zero, so that equal caches give equal bytes.
#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/printable.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_io_blocks.h"
#include "cache/kv_cache_io_select.h"
#include "cache/kv_cache_state.h"
#include "cache/state_bytes.h"

namespace kve {
namespace {

constexpr uint32_t kVersion = 2;

size_t float_bytes(const SideCache& side, int rows) {
  return sizeof(uint16_t) * static_cast<size_t>(rows) * static_cast<size_t>(side.setup().width());
}

void save_side(const SideCache& side, StateWriter* out) {
  const SideCache::Sizes sizes = side.sizes();
  out->put(static_cast<int32_t>(sizes.sinks));
  out->put(static_cast<int32_t>(sizes.coded));
  out->put(static_cast<int32_t>(sizes.tail));
  const bool fitted = !side.setup().spec.projector.is_fixed();
  out->put(static_cast<uint32_t>(fitted ? side.bases().size() : 0));
  if (fitted) {
    for (const std::shared_ptr<const Basis>& basis : side.bases()) {
      const std::vector<std::byte> bytes = basis->save();
      out->put(static_cast<uint32_t>(bytes.size()));
      out->put_bytes(bytes.data(), bytes.size());
    }
  }
  MemorySource& memory = side.memory();
  for (const PageView& page : side.pages().views()) {
    out->put(static_cast<int32_t>(page.basis));
    memory.fetch(page.data, static_cast<size_t>(page.bytes));
    std::vector<std::byte> bytes(page.data, page.data + page.bytes);
    if (page.rows < kPageTokens) clear_rows(side.format(page.basis), bytes.data(), page.rows);
    out->put_bytes(bytes.data(), bytes.size());
  }
  const SideView view = side.view(0);
  memory.fetch(view.sinks, float_bytes(side, sizes.sinks));
  memory.fetch(view.tail, float_bytes(side, sizes.tail));
  out->put_bytes(reinterpret_cast<const std::byte*>(view.sinks), float_bytes(side, sizes.sinks));
  out->put_bytes(reinterpret_cast<const std::byte*>(view.tail), float_bytes(side, sizes.tail));
}

void expect_finite(const SideCache& side, RowPositions positions, const std::string& where,
                   std::vector<float>* scratch) {
  const int dim = side.setup().head_dim;
  scratch->resize(static_cast<size_t>(side.rows()) * static_cast<size_t>(dim));
  for (int head = 0; head < side.setup().n_heads; ++head) {
    side.decode(head, positions, {scratch->data(), side.rows(), dim});
    if (!std::ranges::all_of(*scratch, [](float value) { return std::isfinite(value); })) {
      throw FormatError(message("cache state, ", where, ": expected finite values"));
    }
  }
}

// Bits of strips fall within a tier, and from tier to tier.
void check_strip_bits(const std::string& where, std::span<const uint8_t> bits, size_t n_tiers,
                      uint32_t basis) {
  const size_t n = bits.size() / n_tiers;
  for (size_t i = 0; i < bits.size(); ++i) {
    if (i % n > 0 && bits[i] > bits[i - 1]) bad_field(where, "rising bits in basis", basis);
    if (i >= n && bits[i] > bits[i - n])
      bad_field(where, "bits that rise with age in basis", basis);
  }
}

void load_bases(const std::string& where, const std::shared_ptr<MemoryCounter>& counter,
                StateReader* in, SideCache* side) {
  const SideSetup& setup = side->setup();
  const auto n = in->get<uint32_t>("number of bases");
  const ProjectorSpec& projector = setup.spec.projector;
  const auto n_tiers = static_cast<uint32_t>(setup.spec.n_tiers());
  const uint32_t most = projector.segment > 0  ? (1 + INT16_MAX) / n_tiers
                        : projector.is_fixed() ? 0
                                               : 1;
  if (n > most) bad_field(where, "a number of bases of", n);
  for (uint32_t i = 0; i < n; ++i) {
    const auto size = in->get<uint32_t>("size of a basis");
    const std::shared_ptr<const Basis> basis = Basis::load(in->take(size, where), counter);
    const BasisView view = basis->view();
    const int n_blocks = view.dim / view.block;
    const int expected_blocks =
        projector.block > 0 ? setup.width() / projector.block : setup.n_heads;
    if (view.dim != setup.width() || view.width != setup.basis_width() ||
        n_blocks != expected_blocks) {
      bad_field(where, "a basis of dimension", view.dim);
    }
    if (basis->strip_bits().size() != setup.n_strip_bits()) bad_field(where, "bits of basis", i);
    check_strip_bits(where, basis->strip_bits(), n_tiers, i);
    side->restore_basis(basis);
  }
}

// `rows` is how many both sides must hold.
void load_side(int rows, RowPositions positions, const std::string& where,
               const std::shared_ptr<MemoryCounter>& counter, StateReader* in, SideCache* side,
               std::vector<float>* scratch) {
  const auto sinks = in->get<int32_t>("sink rows");
  const auto coded = in->get<int32_t>("coded rows");
  const auto tail = in->get<int32_t>("tail rows");
  const int expected_sinks = positions.first > 0 ? 0 : std::min(rows, side->setup().sinks);
  if (sinks != expected_sinks) bad_field(where, "a number of sink rows of", sinks);
  if (coded < 0 || coded > rows) bad_field(where, "a number of coded rows of", coded);
  if (tail < 0 || tail > rows) bad_field(where, "a number of tail rows of", tail);
  if (int64_t{sinks} + coded + tail != rows) {
    bad_field(where, "a number of rows of", int64_t{sinks} + coded + tail);
  }
  load_bases(where, counter, in, side);
  const bool segments = side->setup().spec.projector.segment > 0;
  if (coded % (segments ? kPageTokens : rows_per_unit(side->format(0))) != 0) {
    bad_field(where, "a number of coded rows of", coded);
  }
  const bool has_bases = side->setup().spec.projector.kind != ProjectorSpec::Kind::none;
  int last_basis = segments ? -1 : 0;
  for (int row = 0; row < coded; row += kPageTokens) {
    const auto basis = in->get<int32_t>("basis of a page");
    const size_t known = has_bases ? side->bases().size() : 1;
    const int n_tiers = side->setup().spec.n_tiers();
    const int number = basis / n_tiers;
    // Segments follow each other, each with a basis of its own.
    const bool in_order = number == last_basis || (segments && number == last_basis + 1);
    if (!in_order || basis < 0 || static_cast<size_t>(number) >= known) {
      bad_field(where, "a basis of", basis);
    }
    last_basis = number;
    const int n_rows = std::min(coded - row, kPageTokens);
    if (n_rows < kPageTokens && basis % n_tiers > 0)
      bad_field(where, "an open page of tier", basis);
    // Taken before memory is asked for.
    const std::span<const std::byte> source = in->take(side->page_size(basis), where);
    std::byte* page = side->restore_page(n_rows, basis);
    std::ranges::copy(source, page);
    if (!is_sound(side->format(basis), page)) {
      throw FormatError(message("cache state, ", where,
                                ": expected outliers in order, within "
                                "their groups"));
    }
    if (n_rows == kPageTokens) continue;
    clear_rows(side->format(basis), page, n_rows);
    if (!std::equal(source.begin(), source.end(), page)) {
      throw FormatError(message("cache state, ", where, ": expected zeros behind the last row"));
    }
  }
  if (segments && last_basis + 1 != static_cast<int>(side->bases().size())) {
    bad_field(where, "a number of bases of", static_cast<int64_t>(side->bases().size()));
  }
  const auto load_floats = [&](int n, uint16_t* (SideCache::*restore)(int)) {
    const std::span<const std::byte> source = in->take(float_bytes(*side, n), where);
    std::ranges::copy(source, reinterpret_cast<std::byte*>((side->*restore)(n)));
  };
  load_floats(sinks, &SideCache::restore_sinks);
  load_floats(tail, &SideCache::restore_tail);
  side->send();
  expect_finite(*side, positions, where, scratch);
}

void load_queries(const std::string& where, StateReader* in, QuerySquares* queries) {
  const auto count = in->get<int64_t>("number of queries");
  const int64_t most = queries->collects() ? queries->most() : 0;
  if (count < 0 || count > most) bad_field(where, "a number of queries of", count);
  if (queries->of_newest()) {
    for (float& square : queries->restore_newest(count)) {
      square = in->get<float>("squares of a query");
      if (!std::isfinite(square) || square < 0) bad_field(where, "a square that is", -1);
    }
    return;
  }
  for (double& sum : queries->restore(count)) {
    sum = in->get<double>("sum of squares");
    if (!std::isfinite(sum) || sum < 0) bad_field(where, "a sum of squares that is", -1);
  }
}

int load_first_pos(int window, int sinks, int n_tokens, const std::string& where, StateReader* in) {
  const auto first_pos = in->get<int32_t>("first position");
  const int64_t most = window > 0 ? int64_t{n_tokens} - window + 1 : 0;
  if (first_pos < 0 || first_pos > std::max<int64_t>(0, most) ||
      (first_pos > 0 && (first_pos < sinks || (first_pos - sinks) % kPageTokens != 0))) {
    bad_field(where, "a first position of", first_pos);
  }
  return first_pos;
}

void check_shape(const LayerShape& shape, size_t layer, StateReader* in) {
  in->expect<int32_t>(shape.n_kv_heads, message("layer ", layer, ": n_kv_heads"));
  in->expect<int32_t>(shape.key_dim, message("layer ", layer, ": key_dim"));
  in->expect<int32_t>(shape.value_dim, message("layer ", layer, ": value_dim"));
  in->expect<int32_t>(shape.window, message("layer ", layer, ": window"));
}

bool has_gates(const CacheSpec& spec) { return !spec.selector.gates.empty(); }
bool has_counts(const CacheSpec& spec, const std::shared_ptr<const Selector>& selector) {
  return selector != nullptr || spec.selector.reads_some();
}

void load_bounds(const std::string& where, int n_tokens, StateReader* in, LayerCache* layer) {
  for (HeadBounds& bounds : layer->bounds) {
    const size_t pages = static_cast<size_t>(bounds.grid().whole(n_tokens));
    const size_t width = sizeof(uint16_t) * static_cast<size_t>(bounds.width());
    if (pages > in->left() / width)
      bad_field(where, "pages of bounds", static_cast<int64_t>(pages));
    if (!bounds.restore(in->take(pages * width, where))) {
      throw FormatError(message("cache state, ", where,
                                ": expected finite bounds of keys, none above its other"));
    }
  }
}

}  // namespace

std::vector<std::byte> KvCache::save() const {
  const State& s = *state_;
  StateWriter out;
  const CacheStats held = stats();
  // An upper bound: fields take less than the tables they describe.
  out.reserve(static_cast<size_t>(held.bytes + held.offloaded) + 256 + 16 * s.shapes.size());
  out.put(kVersion);
  out.put_string(s.spec.str());
  if (s.file) out.put(s.file->checksum());
  if (has_gates(s.spec)) out.put(budgets_checksum(*s.selector, s.shapes));
  out.put(static_cast<uint32_t>(s.shapes.size()));
  for (const LayerShape& shape : s.shapes) {
    out.put<int32_t>(shape.n_kv_heads);
    out.put<int32_t>(shape.key_dim);
    out.put<int32_t>(shape.value_dim);
    out.put<int32_t>(shape.window);
  }
  out.put<int32_t>(s.n_tokens);
  if (has_counts(s.spec, s.selector)) {
    save_counts({s.n_tokens, s.prompt_tokens, s.selected_at, s.dropped_at, s.shift}, &out);
  }
  for (const LayerCache& layer : s.layers) {
    KVE_ASSERT(layer.appended == 0);
    out.put<int32_t>(layer.first_pos);
    out.put<int64_t>(layer.queries.count());
    if (layer.queries.count() > 0) {
      for (const double sum : layer.queries.sums()) out.put(sum);
      for (const float square : layer.queries.newest()) out.put(square);
    }
    save_kept(layer, &out);
    for (const HeadBounds& bounds : layer.bounds) {
      const size_t bytes = static_cast<size_t>(bounds.pages() * bounds.width()) * sizeof(uint16_t);
      out.put_bytes(reinterpret_cast<const std::byte*>(bounds.data()), bytes);
    }
    if (layer.blocks) BlockMemoryIo::save(*layer.blocks, s.n_tokens, &out);
    layer.each_side([&](const SideCache& side, int) { save_side(side, &out); });
  }
  return out.take();
}

void KvCache::load(std::span<const std::byte> bytes) {
  const State& s = *state_;
  StateReader in(bytes);
  in.expect(kVersion, "version");
  const std::string spec = in.get_string(kMaxSpecLength, "spec");
  if (spec != s.spec.str()) {
    throw FormatError(
        message("cache state: expected spec ", quoted(s.spec.str()), ", found ", quoted(spec)));
  }
  if (s.file) in.expect(s.file->checksum(), "checksum of the calibrated bases");
  if (has_gates(s.spec)) {
    in.expect(budgets_checksum(*s.selector, s.shapes), "checksum of the gates");
  }
  in.expect(static_cast<uint32_t>(s.shapes.size()), "number of layers");
  for (size_t i = 0; i < s.shapes.size(); ++i) check_shape(s.shapes[i], i, &in);
  auto fresh = std::make_unique<State>(s.spec, s.shapes, s.scorer, s.counter);
  fresh->n_tokens = in.get<int32_t>("number of tokens");
  if (fresh->n_tokens < 0 || fresh->n_tokens > kMaxTokens) {
    bad_field("header", "a number of tokens of", fresh->n_tokens);
  }
  SelectionCounts counts{.n_tokens = fresh->n_tokens};
  if (has_counts(s.spec, fresh->selector)) {
    counts = load_counts(fresh->n_tokens, s.spec.selector, &in);
    fresh->prompt_tokens = counts.prompt_tokens;
    fresh->selected_at = counts.selected_at;
    fresh->dropped_at = counts.dropped_at;
    fresh->shift = counts.shift;
  }
  std::vector<float> scratch;
  for (size_t i = 0; i < fresh->layers.size(); ++i) {
    LayerCache& layer = fresh->layers[i];
    const std::string where = message("layer ", i);
    const int window = layer.blocks ? s.spec.selector.local : s.shapes[i].window;
    layer.first_pos = load_first_pos(window, layer.sinks, fresh->n_tokens, where, &in);
    load_queries(where, &in, &layer.queries);
    load_kept(s.shapes[i], s.spec.selector, counts, where, &in, &layer);
    load_bounds(where, fresh->n_tokens, &in, &layer);
    if (layer.blocks) {
      BlockMemoryIo::load(fresh->n_tokens, layer.first_pos, where, &in, &*layer.blocks);
    }
    for (const bool values : {false, true}) {
      Sides& sides = layer.sides(values);
      for (size_t side = 0; side < sides.size(); ++side) {
        const int head = static_cast<int>(side) * sides[side].setup().n_heads;
        load_side(layer.rows_before(fresh->n_tokens - fresh->shift, head), layer.positions(head),
                  side_name(i, static_cast<int>(side), values), s.counter, &in, &sides[side],
                  &scratch);
      }
    }
    layer.refresh_views();
  }
  if (in.left() != 0) {
    throw FormatError(message("cache state: expected its end, found ", in.left(), " more bytes"));
  }
  state_ = std::move(fresh);
}

}  // namespace kve
