// KvCache as bytes, little-endian:
//   u32 version | string spec | u64 checksum of calibrated bases (if any) | u32 n_layers | n_layers
//   x i32 {n_kv_heads, key_dim, value_dim, window} i32 n_tokens | per layer: i32 first_pos | i64
//   n_queries, f64 sums of their squares (if any) | what a selector keeps (if any) | the sides,
//   keys then values:
//     i32 sink_rows | i32 coded_rows | i32 tail_rows | u32 n_bases, each a u32 length and its bytes
//     (of fitted ones) | pages: i32 basis and its bytes | f16 sinks | f16 tail
// With a selector, i32 {prompt_tokens, selected_at, dropped_at, shift} follow the number of tokens,
// and what it keeps of a layer without a window is: per kv head i32 rows, their positions, u64
// words of dead rows, i32 number of masses, f32 masses | of its queries (if it asks for any) i32
// {n, n_heads, width}, f32 queries, f32 sums | i32 n_heads of moments, i64 how many, their sums (if
// any). A string is a u32 length and its bytes. Rows that the last page does not have are zero, so
// that equal caches give equal bytes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/printable.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_state.h"
#include "kernels/few_rows.h"

namespace kve {
namespace {

constexpr uint32_t kVersion = 2;

static_assert(std::endian::native == std::endian::little, "states are little-endian bytes");

class Writer {
 public:
  template <class T>
  void put(T value) {
    put_bytes(reinterpret_cast<const std::byte*>(&value), sizeof(value));
  }
  void put_bytes(const std::byte* data, size_t size) {
    bytes_.insert(bytes_.end(), data, data + size);
  }
  void put_string(const std::string& text) {
    put(static_cast<uint32_t>(text.size()));
    put_bytes(reinterpret_cast<const std::byte*>(text.data()), text.size());
  }
  void reserve(size_t size) { bytes_.reserve(size); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Every take is checked against what is left.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  size_t left() const { return bytes_.size() - at_; }

  std::span<const std::byte> take(size_t size, std::string_view what) {
    if (size > left()) {
      throw FormatError(
          message("cache state: ", what, ": expected ", size, " more bytes, found ", left()));
    }
    at_ += size;
    return bytes_.subspan(at_ - size, size);
  }
  template <class T>
  T get(std::string_view what) {
    T value{};
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  std::string get_string(size_t most, std::string_view what) {
    const auto size = get<uint32_t>(what);
    if (size > most) {
      throw FormatError(
          message("cache state: ", what, ": expected at most ", most, " characters, found ", size));
    }
    const std::span<const std::byte> text = take(size, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }
  template <class T>
  void expect(T expected, std::string_view what) {
    const T found = get<T>(what);
    if (found != expected) {
      throw FormatError(message("cache state: ", what, ": expected ", expected, ", found ", found));
    }
  }

 private:
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

[[noreturn]] void bad_field(const std::string& where, std::string_view what, int64_t found) {
  throw FormatError(message("cache state, ", where, ": ", what, " ", found, " is impossible"));
}

size_t float_bytes(const SideCache& side, int rows) {
  return sizeof(uint16_t) * static_cast<size_t>(rows) * static_cast<size_t>(side.setup().width());
}

void save_side(const SideCache& side, Writer* out) {
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
  for (const PageView& page : side.pages().views()) {
    out->put(static_cast<int32_t>(page.basis));
    std::vector<std::byte> bytes(page.data, page.data + page.bytes);
    if (page.rows < kPageTokens) clear_rows(side.format(page.basis), bytes.data(), page.rows);
    out->put_bytes(bytes.data(), bytes.size());
  }
  const SideView view = side.view(0);
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

void load_bases(const std::string& where, const std::shared_ptr<MemoryCounter>& counter, Reader* in,
                SideCache* side) {
  const SideSetup& setup = side->setup();
  const auto n = in->get<uint32_t>("number of bases");
  const ProjectorSpec& projector = setup.spec.projector;
  const auto n_tiers = static_cast<uint32_t>(setup.spec.n_tiers());
  const uint32_t most = projector.segment > 0 ? (1 + INT16_MAX) / n_tiers
                        : projector.fit > 0   ? 1
                                              : 0;
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
               const std::shared_ptr<MemoryCounter>& counter, Reader* in, SideCache* side,
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
  expect_finite(*side, positions, where, scratch);
}

void load_queries(const std::string& where, Reader* in, QuerySquares* queries) {
  const auto count = in->get<int64_t>("number of queries");
  const int64_t most = queries->collects() ? queries->most() : 0;
  if (count < 0 || count > most) bad_field(where, "a number of queries of", count);
  for (double& sum : queries->restore(count)) {
    sum = in->get<double>("sum of squares");
    if (!std::isfinite(sum) || sum < 0) bad_field(where, "a sum of squares that is", -1);
  }
}

void save_kept(const LayerCache& layer, Writer* out) {
  for (const KeptHead& head : layer.kept) {
    out->put<int32_t>(head.rows());
    for (const int32_t position : head.positions) out->put(position);
    for (const uint64_t word : head.dead) out->put(word);
    out->put(static_cast<int32_t>(head.mass.size()));
    for (const float mass : head.mass) out->put(mass);
  }
  if (!layer.voters) return;
  const Voters& voters = *layer.voters;
  const int n = voters.committed();
  out->put<int32_t>(n);
  out->put<int32_t>(voters.n_heads());
  out->put<int32_t>(voters.width());
  const auto put_floats = [&](const float* data, size_t count) {
    out->put_bytes(reinterpret_cast<const std::byte*>(data), count * sizeof(float));
  };
  put_floats(voters.queries(0, n).data,
             static_cast<size_t>(n) * static_cast<size_t>(voters.width()));
  put_floats(voters.sums_of(0), static_cast<size_t>(n) * static_cast<size_t>(voters.n_heads()));
  const QueryMoments* moments = voters.moments();
  out->put<int32_t>(moments == nullptr ? 0 : moments->n_heads());
  if (moments == nullptr) return;
  out->put<int64_t>(moments->count());
  if (moments->count() == 0) return;
  for (const double sum : moments->sums()) out->put(sum);
}

float get_finite(std::string_view what, Reader* in) {
  const auto value = in->get<float>(what);
  if (!std::isfinite(value)) throw FormatError(message("cache state: ", what, " is not finite"));
  return value;
}

void load_head(int n_tokens, int sinks, const std::string& where, Reader* in, KeptHead* head) {
  const auto rows = in->get<int32_t>("rows");
  if (rows < std::min(n_tokens, sinks) || rows > n_tokens ||
      static_cast<size_t>(rows) > in->left() / sizeof(int32_t)) {
    bad_field(where, "a number of rows of", rows);
  }
  head->append(rows, 0, false);
  for (int r = 0; r < rows; ++r) {
    const auto position = in->get<int32_t>("position");
    const int least = r == 0 ? 0 : head->positions[static_cast<size_t>(r - 1)] + 1;
    // Sinks are never dropped.
    if (position < least || position >= n_tokens || (r < sinks && position != r)) {
      bad_field(where, "a position of", position);
    }
    head->positions[static_cast<size_t>(r)] = position;
  }
  for (uint64_t& word : head->dead) word = in->get<uint64_t>("dead rows");
  const int odd = rows % 64;
  if (odd != 0 && head->dead.back() >> odd != 0) bad_field(where, "a dead row after", rows);
  head->count_dead();
  const auto n = in->get<int32_t>("number of masses");
  if (n != 0 && n != rows) bad_field(where, "a number of masses of", n);
  head->mass.resize(static_cast<size_t>(n));
  head->pending.resize(static_cast<size_t>(n));
  for (float& mass : head->mass) {
    mass = get_finite("mass", in);
    if (mass < 0) bad_field(where, "a mass below", 0);
  }
}

void load_voters(const LayerShape& shape, const std::string& where, Reader* in, Voters* voters) {
  const auto n = in->get<int32_t>("number of voters");
  const auto n_heads = in->get<int32_t>("query heads");
  const auto width = in->get<int32_t>("width of a query");
  const bool sane =
      n_heads >= 0 && n_heads % shape.n_kv_heads == 0 && width == int64_t{n_heads} * shape.key_dim;
  if (!sane) bad_field(where, "a number of query heads of", n_heads);
  const size_t floats = in->left() / sizeof(float);
  if (n < 0 || n > 2 * voters->most() + kFewRows || (n > 0 && n_heads == 0) ||
      (n > 0 && static_cast<size_t>(n) > floats / static_cast<size_t>(width + n_heads))) {
    bad_field(where, "a number of voters of", n);
  }
  voters->restore(n, n_heads, width);
  for (int64_t i = 0; i < int64_t{n} * width; ++i) {
    voters->writable_queries()[i] = get_finite("query", in);
  }
  for (int64_t i = 0; i < int64_t{n} * n_heads; ++i) {
    voters->writable_sums()[i] = get_finite("sum of weights", in);
  }
  const auto moment_heads = in->get<int32_t>("query heads of moments");
  if (moment_heads == 0) return;
  if (!voters->wants_moments() || moment_heads != n_heads) {
    bad_field(where, "a number of query heads of", moment_heads);
  }
  const auto count = in->get<int64_t>("number of queries");
  const size_t per_head =
      static_cast<size_t>(shape.key_dim) * static_cast<size_t>(shape.key_dim + 1);
  if (count < 0 ||
      (count > 0 && per_head > in->left() / sizeof(double) / static_cast<size_t>(moment_heads))) {
    bad_field(where, "a number of queries of", count);
  }
  for (double& sum : voters->restore_moments(moment_heads, shape.key_dim)->restore(count)) {
    sum = in->get<double>("sum of queries");
    if (!std::isfinite(sum)) bad_field(where, "a sum of queries that is", -1);
  }
}

void load_kept(const LayerShape& shape, int n_tokens, const std::string& where, Reader* in,
               LayerCache* layer) {
  for (KeptHead& head : layer->kept) load_head(n_tokens, layer->sinks, where, in, &head);
  const size_t group = static_cast<size_t>(layer->heads_per_group());
  for (size_t h = 0; h < layer->kept.size(); ++h) {
    if (layer->kept[h].positions != layer->kept[h / group * group].positions) {
      bad_field(where, "other rows than its neighbours' in head", static_cast<int64_t>(h));
    }
  }
  if (layer->voters) load_voters(shape, where, in, &*layer->voters);
}

int load_first_pos(const LayerShape& shape, int sinks, int n_tokens, const std::string& where,
                   Reader* in) {
  const auto first_pos = in->get<int32_t>("first position");
  const int64_t most = shape.window > 0 ? int64_t{n_tokens} - shape.window + 1 : 0;
  if (first_pos < 0 || first_pos > std::max<int64_t>(0, most) ||
      (first_pos > 0 && (first_pos < sinks || (first_pos - sinks) % kPageTokens != 0))) {
    bad_field(where, "a first position of", first_pos);
  }
  return first_pos;
}

void check_shape(const LayerShape& shape, size_t layer, Reader* in) {
  in->expect<int32_t>(shape.n_kv_heads, message("layer ", layer, ": n_kv_heads"));
  in->expect<int32_t>(shape.key_dim, message("layer ", layer, ": key_dim"));
  in->expect<int32_t>(shape.value_dim, message("layer ", layer, ": value_dim"));
  in->expect<int32_t>(shape.window, message("layer ", layer, ": window"));
}

}  // namespace

std::vector<std::byte> KvCache::save() const {
  const State& s = *state_;
  Writer out;
  const CacheStats held = stats();
  // An upper bound: fields take less than the tables they describe.
  out.reserve(static_cast<size_t>(held.bytes) + 256 + 16 * s.shapes.size());
  out.put(kVersion);
  out.put_string(s.spec.str());
  if (s.file) out.put(s.file->checksum());
  out.put(static_cast<uint32_t>(s.shapes.size()));
  for (const LayerShape& shape : s.shapes) {
    out.put<int32_t>(shape.n_kv_heads);
    out.put<int32_t>(shape.key_dim);
    out.put<int32_t>(shape.value_dim);
    out.put<int32_t>(shape.window);
  }
  out.put<int32_t>(s.n_tokens);
  if (s.selector != nullptr) {
    out.put<int32_t>(s.prompt_tokens);
    out.put<int32_t>(s.selected_at);
    out.put<int32_t>(s.dropped_at);
    out.put<int32_t>(s.shift);
  }
  for (const LayerCache& layer : s.layers) {
    KVE_ASSERT(layer.appended == 0);
    out.put<int32_t>(layer.first_pos);
    out.put<int64_t>(layer.queries.count());
    if (layer.queries.count() > 0) {
      for (const double sum : layer.queries.sums()) out.put(sum);
    }
    save_kept(layer, &out);
    layer.each_side([&](const SideCache& side, int) { save_side(side, &out); });
  }
  return out.take();
}

void KvCache::load(std::span<const std::byte> bytes) {
  const State& s = *state_;
  Reader in(bytes);
  in.expect(kVersion, "version");
  const std::string spec = in.get_string(kMaxSpecLength, "spec");
  if (spec != s.spec.str()) {
    throw FormatError(
        message("cache state: expected spec ", quoted(s.spec.str()), ", found ", quoted(spec)));
  }
  if (s.file) in.expect(s.file->checksum(), "checksum of the calibrated bases");
  in.expect(static_cast<uint32_t>(s.shapes.size()), "number of layers");
  for (size_t i = 0; i < s.shapes.size(); ++i) check_shape(s.shapes[i], i, &in);
  auto fresh = std::make_unique<State>(s.spec, s.shapes, s.scorer, s.counter);
  fresh->n_tokens = in.get<int32_t>("number of tokens");
  if (fresh->n_tokens < 0 || fresh->n_tokens > kMaxTokens) {
    bad_field("header", "a number of tokens of", fresh->n_tokens);
  }
  if (fresh->selector != nullptr) {
    for (int* count :
         {&fresh->prompt_tokens, &fresh->selected_at, &fresh->dropped_at, &fresh->shift}) {
      *count = in.get<int32_t>("tokens at a selection");
      if (*count < 0 || *count > fresh->n_tokens) bad_field("header", "a selection at", *count);
    }
  }
  std::vector<float> scratch;
  for (size_t i = 0; i < fresh->layers.size(); ++i) {
    LayerCache& layer = fresh->layers[i];
    const std::string where = message("layer ", i);
    layer.first_pos = load_first_pos(s.shapes[i], s.spec.sinks, fresh->n_tokens, where, &in);
    load_queries(where, &in, &layer.queries);
    if (!s.spec.selector.reassign && fresh->shift != 0)
      bad_field("header", "a shift of", fresh->shift);
    load_kept(s.shapes[i], fresh->n_tokens - fresh->shift, where, &in, &layer);
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
