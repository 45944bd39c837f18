// KvCache as bytes, little-endian:
//   u32 version | string spec | u32 n_layers | n_layers x i32 {n_kv_heads, key_dim, value_dim,
//   window} i32 n_tokens | per layer: i32 first_pos, then per head keys and values:
//     i32 coded_rows | i32 tail_rows | the bytes of coded rows, page by page | f16 tail
// A string is a u32 length and its bytes. Of the last page only its rows are written, so that equal
// caches give equal bytes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/printable.h"
#include "cache/kv_cache.h"
#include "cache/kv_cache_state.h"

namespace kve {
namespace {

constexpr uint32_t kVersion = 1;

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

void save_side(const SideCache& side, Writer* out) {
  const SideView view = side.view();
  out->put(static_cast<int32_t>(side.pages().rows()));
  out->put(view.tail_rows);
  for (const PageView& page : view.pages) {
    for (const ByteRange& range : row_ranges(view.codec, view.width, page.rows)) {
      out->put_bytes(page.data + range.offset, range.length);
    }
  }
  const size_t tail_bytes =
      sizeof(uint16_t) * static_cast<size_t>(view.tail_rows) * static_cast<size_t>(view.width);
  out->put_bytes(reinterpret_cast<const std::byte*>(view.tail), tail_bytes);
}

bool all_rows_finite(const SideCache& side, const CodecSpec& spec, std::vector<float>* scratch) {
  const SideView view = side.view();
  const auto width = static_cast<size_t>(view.width);
  scratch->resize(kPageTokens * width);
  const auto finite = [&](int rows) {
    return std::all_of(scratch->begin(),
                       scratch->begin() + static_cast<std::ptrdiff_t>(rows * view.width),
                       [](float value) { return std::isfinite(value); });
  };
  for (const PageView& page : view.pages) {
    codec(spec.id).decode(page.data, 0, page.rows, view.width, spec.group, scratch->data(),
                          view.width);
    if (!finite(page.rows)) return false;
  }
  const auto* tail = reinterpret_cast<const std::byte*>(view.tail);
  for (int first = 0; first < view.tail_rows; first += kPageTokens) {
    const int rows = std::min(kPageTokens, view.tail_rows - first);
    codec(CodecId::f16).decode(tail, first, rows, view.width, 0, scratch->data(), view.width);
    if (!finite(rows)) return false;
  }
  return true;
}

// `rows` is how many both sides must hold.
void load_side(const SideSpec& spec, int rows, const std::string& where, Reader* in,
               SideCache* side, std::vector<float>* scratch) {
  const auto coded = in->get<int32_t>("coded rows");
  const auto tail = in->get<int32_t>("tail rows");
  // After a commit the tail holds fewer than 64 rows more than it should.
  const int most = spec.eager() ? 0 : spec.tail + kPageTokens - 1;
  if (coded < 0 || coded > rows) bad_field(where, "a number of coded rows of", coded);
  if (tail < 0 || tail > most) bad_field(where, "a number of tail rows of", tail);
  if (coded + tail != rows) bad_field(where, "a number of rows of", int64_t{coded} + tail);
  // Before anything is allocated for them.
  const int width = side->width();
  const size_t tail_bytes =
      sizeof(uint16_t) * static_cast<size_t>(tail) * static_cast<size_t>(width);
  const size_t full_bytes =
      static_cast<size_t>(coded / kPageTokens) * page_bytes(spec.codec, width);
  if (full_bytes + tail_bytes > in->left()) bad_field(where, "a number of rows of", rows);
  side->restore(coded, tail);
  const std::span<const PageView> pages = side->pages().views();
  for (size_t i = 0; i < pages.size(); ++i) {
    for (const ByteRange& range : row_ranges(spec.codec, width, pages[i].rows)) {
      const std::span<const std::byte> source = in->take(range.length, where);
      std::copy(source.begin(), source.end(), side->restored_page(i) + range.offset);
    }
  }
  const std::span<const std::byte> source = in->take(tail_bytes, where);
  std::copy(source.begin(), source.end(), reinterpret_cast<std::byte*>(side->restored_tail()));
  if (!all_rows_finite(*side, spec.codec, scratch)) {
    throw FormatError(message("cache state, ", where, ": expected finite values"));
  }
}

int load_first_pos(const LayerShape& shape, int n_tokens, const std::string& where, Reader* in) {
  const auto first_pos = in->get<int32_t>("first position");
  const int64_t most = shape.window > 0 ? int64_t{n_tokens} - shape.window + 1 : 0;
  if (first_pos < 0 || first_pos > std::max<int64_t>(0, most) || first_pos % kPageTokens != 0) {
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
  out.put(static_cast<uint32_t>(s.shapes.size()));
  for (const LayerShape& shape : s.shapes) {
    out.put<int32_t>(shape.n_kv_heads);
    out.put<int32_t>(shape.key_dim);
    out.put<int32_t>(shape.value_dim);
    out.put<int32_t>(shape.window);
  }
  out.put<int32_t>(s.n_tokens);
  for (const LayerCache& layer : s.layers) {
    KVE_ASSERT(layer.appended == 0);
    out.put<int32_t>(layer.first_pos);
    for (const SideCache& side : layer.sides) save_side(side, &out);
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
  in.expect(static_cast<uint32_t>(s.shapes.size()), "number of layers");
  for (size_t i = 0; i < s.shapes.size(); ++i) check_shape(s.shapes[i], i, &in);
  auto fresh = std::make_unique<State>(s.spec, s.shapes, s.counter);
  fresh->n_tokens = in.get<int32_t>("number of tokens");
  if (fresh->n_tokens < 0 || fresh->n_tokens > kMaxTokens) {
    bad_field("header", "a number of tokens of", fresh->n_tokens);
  }
  std::vector<float> scratch;
  for (size_t i = 0; i < fresh->layers.size(); ++i) {
    LayerCache& layer = fresh->layers[i];
    layer.first_pos = load_first_pos(s.shapes[i], fresh->n_tokens, message("layer ", i), &in);
    for (size_t side = 0; side < layer.sides.size(); ++side) {
      load_side(side % 2 == 0 ? s.spec.k : s.spec.v, fresh->n_tokens - layer.first_pos,
                side_name(i, side), &in, &layer.sides[side], &scratch);
    }
    layer.refresh_views();
  }
  if (in.left() != 0) {
    throw FormatError(message("cache state: expected its end, found ", in.left(), " more bytes"));
  }
  state_ = std::move(fresh);
}

}  // namespace kve
