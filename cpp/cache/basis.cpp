#include "cache/basis.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/half.h"
#include "cache/spec.h"
#include "formats/cache/strips.h"

namespace kve {
namespace {

constexpr uint32_t kVersion = 2;
constexpr int kMaxDim = 1 << 20;

static_assert(std::endian::native == std::endian::little, "bases are saved as little-endian bytes");

// What save() writes before the arrays.
struct Header {
  uint32_t version;
  int32_t dim;
  int32_t width;
  int32_t block;
  int32_t block_width;
  uint32_t is_int8;
  uint32_t has_row;
  uint32_t has_column;
  uint32_t n_strip_bits;
};

// A name for what is wrong with a shape, or null.
const char* shape_error(int64_t dim, int64_t width, int64_t block, int64_t block_width) {
  if (dim < 1 || dim > kMaxDim) return "dim";
  if (block < 1 || block > dim || dim % block != 0) return "block";
  if (block_width < 1 || block_width > block) return "block width";
  if (width != dim / block * block_width) return "width";
  return nullptr;
}

bool strips_fit(size_t n_strips, int width) {
  const auto keys = static_cast<size_t>(key_strips(width));
  return n_strips == static_cast<size_t>(value_strips(width)) ||
         (n_strips % keys == 0 && n_strips / keys <= kMaxTiers);
}

size_t lift_size(const BasisView& view) {
  return static_cast<size_t>(view.block) * static_cast<size_t>(view.block_width);
}

// An entry of the lift as it is stored.
double lift_at(const BasisView& view, int64_t j, int64_t c) {
  const int64_t at = j * view.block_width + c;
  return view.lift8 == nullptr ? double{half_to_float(view.lift[at])}
                               : double{view.lift8_scale[j]} * view.lift8[at];
}

// A power of two that brings the largest magnitude where binary16 has all of its digits for it and
// for much smaller ones.
int scale_exponent(std::span<const float> lift) {
  float largest = 0;
  for (const float value : lift) largest = std::max(largest, std::abs(value));
  if (largest == 0 || (largest >= 0x1p-6f && largest <= 0x1p14f)) return 0;
  return -std::ilogb(largest);
}

// The factors of the columns that fit the rounded lift as those of `data` fit the exact one.
std::vector<float> fitted_column(const BasisData& data, std::span<const uint16_t> rounded) {
  const auto width = static_cast<size_t>(data.block_width);
  std::vector<double> exact(width);
  std::vector<double> found(width);
  for (size_t j = 0; j < static_cast<size_t>(data.block); ++j) {
    const double weight = data.row.empty() ? 1.0 : data.row[j];
    for (size_t c = 0; c < width; ++c) {
      const double x = data.lift[j * width + c];
      const double y = half_to_float(rounded[j * width + c]);
      exact[c] += weight * x * x;
      found[c] += weight * y * y;
    }
  }
  std::vector<float> out(width);
  for (size_t c = 0; c < width; ++c) {
    const double given = data.column.empty() ? 1.0 : data.column[c];
    out[c] = found[c] > 0 ? static_cast<float>(given * exact[c] / found[c]) : 0.0f;
  }
  if (std::all_of(out.begin(), out.end(), [](float x) { return x == 1; })) out.clear();
  return out;
}

// For one allocate_shared: counts the block with the object and notes its size.
template <class T>
class NotingAllocator {
 public:
  using value_type = T;
  NotingAllocator(CountedAllocator<T> counted, size_t* bytes) : counted_(counted), bytes_(bytes) {}
  template <class U>
  NotingAllocator(const NotingAllocator<U>& other)  // NOLINT(google-explicit-constructor)
      : counted_(other.counted()), bytes_(other.noted()) {}

  T* allocate(size_t n) {
    *bytes_ = n * sizeof(T);
    return counted_.allocate(n);
  }
  void deallocate(T* memory, size_t n) noexcept { counted_.deallocate(memory, n); }
  const CountedAllocator<T>& counted() const { return counted_; }
  size_t* noted() const { return bytes_; }
  template <class U>
  bool operator==(const NotingAllocator<U>& other) const {
    return counted_ == other.counted();
  }

 private:
  CountedAllocator<T> counted_;
  size_t* bytes_;  // only valid during allocate_shared
};

// Returns the place behind what was written.
template <class T>
std::byte* put(const T* values, size_t n, std::byte* to) {
  if (n > 0) std::memcpy(to, values, n * sizeof(T));
  return to + n * sizeof(T);
}

size_t saved_size(const Header& header) {
  const auto block = static_cast<size_t>(header.block);
  const auto block_width = static_cast<size_t>(header.block_width);
  const size_t lift = header.is_int8 != 0 ? block * (block_width + sizeof(float))
                                          : block * block_width * sizeof(uint16_t);
  return sizeof(header) + lift + (header.has_row != 0 ? block * sizeof(float) : 0) +
         (header.has_column != 0 ? block_width * sizeof(float) : 0) + header.n_strip_bits;
}

// The next n values; the caller has checked that they are there.
template <class T>
std::vector<T> take(std::span<const std::byte>* bytes, size_t n) {
  std::vector<T> out(n);
  if (n > 0) std::memcpy(out.data(), bytes->data(), n * sizeof(T));
  *bytes = bytes->subspan(n * sizeof(T));
  return out;
}

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

[[noreturn]] void bad(std::string_view what, int64_t found) {
  throw FormatError(message("cache basis: ", what, " ", found, " is impossible"));
}

Header read_header(std::span<const std::byte> bytes) {
  Header header;
  if (bytes.size() < sizeof(header)) {
    throw FormatError(
        message("cache basis: expected at least ", sizeof(header), " bytes, found ", bytes.size()));
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.version != kVersion) {
    throw FormatError(
        message("cache basis: expected version ", kVersion, ", found ", header.version));
  }
  const char* wrong = shape_error(header.dim, header.width, header.block, header.block_width);
  if (wrong != nullptr) {
    throw FormatError(message("cache basis: ", wrong, ": expected a basis of equal blocks, found ",
                              header.dim, " values as ", header.width, " in blocks of ",
                              header.block, " as ", header.block_width));
  }
  if (header.is_int8 > 1) bad("a mark for int8 of", header.is_int8);
  if (header.has_row > 1) bad("a mark for rows of", header.has_row);
  // An int8 lift comes without.
  if (header.has_column > 1 - header.is_int8) bad("a mark for columns of", header.has_column);
  if (!strips_fit(header.n_strip_bits, header.width)) {
    bad("a number of strips of", header.n_strip_bits);
  }
  return header;
}

}  // namespace

// What a basis holds, with its final numbers.
struct Basis::Stored {
  BasisView shape;
  std::vector<uint16_t> lift;
  std::vector<int8_t> lift8;
  std::vector<float> lift8_scale;
  std::vector<float> row;
  std::vector<float> column;
  std::vector<uint8_t> strip_bits;

  static Stored rounded(const BasisData& data) {
    KVE_ASSERT(shape_error(data.dim, data.width, data.block, data.block_width) == nullptr);
    const auto block = static_cast<size_t>(data.block);
    const auto block_width = static_cast<size_t>(data.block_width);
    KVE_ASSERT(data.lift.size() == block * block_width);
    KVE_ASSERT(data.row.empty() || data.row.size() == block);
    KVE_ASSERT(data.column.empty() || data.column.size() == block_width);
    KVE_ASSERT(!data.int8 || data.column.empty());
    KVE_ASSERT(strips_fit(data.strip_bits.size(), data.width));
    Stored out;
    out.shape.dim = data.dim;
    out.shape.width = data.width;
    out.shape.block = data.block;
    out.shape.block_width = data.block_width;
    if (data.int8) {
      out.round_rows(data);
    } else {
      const int exponent = scale_exponent(data.lift);
      for (const float value : data.lift) {
        out.lift.push_back(float_to_half(std::ldexp(value, exponent)));
      }
      out.column = fitted_column(data, out.lift);
    }
    out.row = data.row;
    out.strip_bits = data.strip_bits;
    return out;
  }

  void round_rows(const BasisData& data) {
    const auto width = static_cast<size_t>(data.block_width);
    for (size_t j = 0; j < static_cast<size_t>(data.block); ++j) {
      const std::span<const float> values = std::span(data.lift).subspan(j * width, width);
      float largest = 0;
      for (const float value : values) largest = std::max(largest, std::abs(value));
      const float scale = largest / 127;
      for (const float value : values) {
        lift8.push_back(scale > 0 ? static_cast<int8_t>(std::lround(value / scale)) : int8_t{0});
      }
      lift8_scale.push_back(scale);
    }
  }
};

std::shared_ptr<const Basis> Basis::make(const BasisData& data,
                                         const std::shared_ptr<MemoryCounter>& counter) {
  return make(Stored::rounded(data), counter);
}

std::shared_ptr<const Basis> Basis::make(const Stored& stored,
                                         const std::shared_ptr<MemoryCounter>& counter) {
  size_t bytes = 0;
  const NotingAllocator<Basis> allocator(CountedAllocator<Basis>(counter), &bytes);
  const auto basis = std::allocate_shared<Basis>(allocator, stored, counter);
  basis->own_bytes_ = bytes;
  return basis;
}

Basis::Basis(const Stored& stored, const std::shared_ptr<MemoryCounter>& counter)
    : view_(stored.shape), n_strip_bits_(stored.strip_bits.size()) {
  // Every array begins on a cache line.
  size_t size = 0;
  const auto reserve = [&](size_t bytes) {
    const size_t at = size;
    size += (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    return at;
  };
  const size_t lift_at = reserve(stored.lift.size() * sizeof(uint16_t));
  const size_t lift8_at = reserve(stored.lift8.size());
  const size_t scale_at = reserve(stored.lift8_scale.size() * sizeof(float));
  const size_t row_at = reserve(stored.row.size() * sizeof(float));
  const size_t column_at = reserve(stored.column.size() * sizeof(float));
  const size_t strips_at = reserve(stored.strip_bits.size());
  memory_ = LargeBlock(counter, size);
  std::memset(memory_.data(), 0, size);
  const auto write = [&]<class T>(const std::vector<T>& values, size_t at) -> const T* {
    if (values.empty()) return nullptr;
    std::memcpy(memory_.data() + at, values.data(), values.size() * sizeof(T));
    return reinterpret_cast<const T*>(memory_.data() + at);
  };
  view_.lift = write(stored.lift, lift_at);
  view_.lift8 = write(stored.lift8, lift8_at);
  view_.lift8_scale = write(stored.lift8_scale, scale_at);
  view_.projected_twice = view_.lift8 != nullptr;
  view_.row = write(stored.row, row_at);
  view_.column = write(stored.column, column_at);
  view_.strip_bits = write(stored.strip_bits, strips_at);
  counter->source().send(memory_.data(), size);
  counter->source().wait();  // other threads may have a device read them
}

std::vector<std::byte> Basis::save() const {
  const Header header{kVersion,
                      view_.dim,
                      view_.width,
                      view_.block,
                      view_.block_width,
                      view_.lift8 != nullptr ? 1u : 0u,
                      view_.row != nullptr ? 1u : 0u,
                      view_.column != nullptr ? 1u : 0u,
                      static_cast<uint32_t>(n_strip_bits_)};
  std::vector<std::byte> out(saved_size(header));
  std::byte* to = put(&header, 1, out.data());
  if (view_.lift8 == nullptr) {
    to = put(view_.lift, lift_size(view_), to);
  } else {
    to = put(view_.lift8, lift_size(view_), to);
    to = put(view_.lift8_scale, static_cast<size_t>(view_.block), to);
  }
  to = put(view_.row, header.has_row * static_cast<size_t>(view_.block), to);
  to = put(view_.column, header.has_column * static_cast<size_t>(view_.block_width), to);
  put(view_.strip_bits, n_strip_bits_, to);
  return out;
}

std::shared_ptr<const Basis> Basis::load(std::span<const std::byte> bytes,
                                         const std::shared_ptr<MemoryCounter>& counter) {
  const Header header = read_header(bytes);
  Stored stored;
  stored.shape.dim = header.dim;
  stored.shape.width = header.width;
  stored.shape.block = header.block;
  stored.shape.block_width = header.block_width;
  // Before anything is allocated for it.
  if (bytes.size() != saved_size(header)) {
    throw FormatError(
        message("cache basis: expected ", saved_size(header), " bytes, found ", bytes.size()));
  }
  bytes = bytes.subspan(sizeof(header));
  if (header.is_int8 == 0) {
    stored.lift = take<uint16_t>(&bytes, lift_size(stored.shape));
  } else {
    stored.lift8 = take<int8_t>(&bytes, lift_size(stored.shape));
    stored.lift8_scale = take<float>(&bytes, static_cast<size_t>(header.block));
  }
  stored.row = take<float>(&bytes, header.has_row * static_cast<size_t>(header.block));
  stored.column = take<float>(&bytes, header.has_column * static_cast<size_t>(header.block_width));
  stored.strip_bits = take<uint8_t>(&bytes, header.n_strip_bits);
  const bool lift_is_finite = std::all_of(stored.lift.begin(), stored.lift.end(), [](uint16_t x) {
    return std::isfinite(half_to_float(x));
  });
  if (!lift_is_finite || !all_finite(stored.lift8_scale) || !all_finite(stored.row) ||
      !all_finite(stored.column)) {
    throw FormatError("cache basis: expected finite values, found others");
  }
  for (const uint8_t bits : stored.strip_bits) {
    if (bits > 8) bad("a number of bits of", bits);
  }
  return make(stored, counter);
}

// One block: coefficients += column * lift^T (row * values).
static void add_projection(const BasisView& basis, const double* values, double* coefficients) {
  for (int c = 0; c < basis.block_width; ++c) {
    double sum = 0;
    for (int j = 0; j < basis.block; ++j) {
      sum += lift_at(basis, j, c) * (basis.row != nullptr ? basis.row[j] : 1.0f) * values[j];
    }
    coefficients[c] += sum * (basis.column != nullptr ? basis.column[c] : 1.0f);
  }
}

void project_rows(const BasisView& basis, ConstMat values, Mat coefficients) {
  KVE_ASSERT(values.cols == basis.dim && coefficients.cols == basis.width);
  KVE_ASSERT(values.rows == coefficients.rows);
  for (int64_t r = 0; r < values.rows; ++r) {
    for (int b = 0; b < basis.dim / basis.block; ++b) {
      const float* from = values.row(r) + b * basis.block;
      std::vector<double> left(from, from + basis.block);
      std::vector<double> found(static_cast<size_t>(basis.block_width));
      add_projection(basis, left.data(), found.data());
      if (basis.projected_twice) {
        for (int j = 0; j < basis.block; ++j) {
          for (int c = 0; c < basis.block_width; ++c) {
            left[static_cast<size_t>(j)] -= lift_at(basis, j, c) * found[static_cast<size_t>(c)];
          }
        }
        add_projection(basis, left.data(), found.data());
      }
      std::copy(found.begin(), found.end(), coefficients.row(r) + b * basis.block_width);
    }
  }
}

void lift_rows(const BasisView& basis, ConstMat coefficients, Mat values) {
  KVE_ASSERT(values.cols == basis.dim && coefficients.cols == basis.width);
  KVE_ASSERT(values.rows == coefficients.rows);
  for (int64_t r = 0; r < values.rows; ++r) {
    for (int b = 0; b < basis.dim / basis.block; ++b) {
      const float* from = coefficients.row(r) + b * basis.block_width;
      float* to = values.row(r) + b * basis.block;
      for (int j = 0; j < basis.block; ++j) {
        double sum = 0;
        for (int c = 0; c < basis.block_width; ++c) sum += lift_at(basis, j, c) * from[c];
        to[j] = static_cast<float>(sum);
      }
    }
  }
}

void project_query(const BasisView& basis, const float* query, float* out) {
  for (int b = 0; b < basis.dim / basis.block; ++b) {
    for (int c = 0; c < basis.block_width; ++c) {
      double sum = 0;
      for (int j = 0; j < basis.block; ++j) {
        sum += lift_at(basis, j, c) * query[b * basis.block + j];
      }
      out[b * basis.block_width + c] = static_cast<float>(sum);
    }
  }
}

}  // namespace kve
