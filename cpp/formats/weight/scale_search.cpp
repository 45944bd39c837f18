#include "formats/weight/scale_search.h"

#include <cmath>
#include <limits>

#include "base/half.h"

namespace kve {

namespace {

constexpr int kAffineGroup = 32;
constexpr int kSymmetricGroup = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What a block stores: the nearest binary16 number.
float as_stored(float value) { return half_to_float(float_to_half(value)); }

// Nearest integer within 0..max; NaN becomes 0.
int nearest(float value, int max) {
  const float top = static_cast<float>(max);
  const float clamped = value > 0.0f ? (value < top ? value : top) : 0.0f;
  return static_cast<int>(clamped + 0.5f);
}

// Nearest integer within -128..127; NaN becomes 0.
int nearest_int8(float value) {
  if (!(value > -128.0f)) return value <= -128.0f ? -128 : 0;
  return value < 127.0f ? static_cast<int>(std::lround(value)) : 127;
}

float inverse(float value) { return value != 0.0f ? 1.0f / value : 0.0f; }

// --- Affine groups: x ~ scale * code + min -------------------------------------------------------

struct Line {
  float scale, min;
};

// Rounds a group to its nearest codes on `line`; returns the squared error.
float round_to_line(const float* x, Line line, int max_code, uint8_t* codes) {
  const float inv = inverse(line.scale);
  float error = 0.0f;
  for (int i = 0; i < kAffineGroup; ++i) {
    const int code = nearest((x[i] - line.min) * inv, max_code);
    codes[i] = static_cast<uint8_t>(code);
    const float miss = line.scale * static_cast<float>(code) + line.min - x[i];
    error += miss * miss;
  }
  return error;
}

// The least-squares line through (codes, x). `sign` is that of allowed minima: where the best line
// has another, the best one through zero. Coordinates are relative to `origin`, near the values,
// because sums of squares would lose what distinguishes values far from zero.
Line fit_line(const float* x, const uint8_t* codes, float origin, float sign) {
  int sum_q = 0, sum_qq = 0;
  float sum_y = 0.0f, sum_qy = 0.0f;
  for (int i = 0; i < kAffineGroup; ++i) {
    const int q = codes[i];
    const float y = x[i] - origin;
    sum_q += q;
    sum_qq += q * q;
    sum_y += y;
    sum_qy += static_cast<float>(q) * y;
  }
  const int determinant = kAffineGroup * sum_qq - sum_q * sum_q;
  if (determinant == 0) return {0.0f, origin};
  Line line;
  line.scale = (static_cast<float>(kAffineGroup) * sum_qy - static_cast<float>(sum_q) * sum_y) /
               static_cast<float>(determinant);
  line.min = origin + (sum_y - line.scale * static_cast<float>(sum_q)) / kAffineGroup;
  if (line.min * sign < 0.0f) {
    line.min = 0.0f;
    line.scale = (sum_qy + origin * static_cast<float>(sum_q)) / static_cast<float>(sum_qq);
  }
  return line;
}

Line search_line(const float* x, int max_code, float sign) {
  float low = x[0], high = x[0];
  for (int i = 1; i < kAffineGroup; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  if (low * sign < 0.0f) low = 0.0f;
  if (!(high > low)) return {0.0f, low};

  uint8_t codes[kAffineGroup];
  Line best{(high - low) / static_cast<float>(max_code), low};
  float best_error = round_to_line(x, best, max_code, codes);
  // Starts that stretch the range by up to a step to either side: outliers may be clipped, or the
  // extreme codes left unused.
  for (int start = -5; start <= 5; ++start) {
    const float steps = static_cast<float>(max_code) + 0.2f * static_cast<float>(start);
    round_to_line(x, {(high - low) / steps, low}, max_code, codes);
    for (int round = 0; round < 2; ++round) {
      const Line line = fit_line(x, codes, low, sign);
      if (!(line.scale > 0.0f)) break;
      const float error = round_to_line(x, line, max_code, codes);
      if (error < best_error) {
        best_error = error;
        best = line;
      }
    }
  }
  return best;
}

// With d and dmin given: the stored scale and minimum near `wanted` with the least error.
float choose_stored(const float* x, Line wanted, int max_code, int group, AffineBlock* block) {
  const int scale = nearest(wanted.scale * inverse(block->d), 63);
  const int min = nearest(-wanted.min * inverse(block->dmin), 63);
  uint8_t codes[kAffineGroup];
  float best_error = kInfinity;
  for (int s = scale > 0 ? scale - 1 : 0; s <= scale + 1 && s <= 63; ++s) {
    for (int m = min > 0 ? min - 1 : 0; m <= min + 1 && m <= 63; ++m) {
      const Line line{block->d * static_cast<float>(s), -(block->dmin * static_cast<float>(m))};
      const float error = round_to_line(x, line, max_code, codes);
      if (error < best_error || best_error == kInfinity) {
        best_error = error;
        block->scales[group] = s;
        block->mins[group] = m;
        for (int i = 0; i < kAffineGroup; ++i) block->codes[kAffineGroup * group + i] = codes[i];
      }
    }
  }
  return best_error;
}

float choose_all_stored(const float* x, const Line* wanted, int max_code, AffineBlock* block) {
  float error = 0.0f;
  for (int group = 0; group < 8; ++group) {
    error += choose_stored(x + kAffineGroup * group, wanted[group], max_code, group, block);
  }
  return error;
}

// The least-squares d and dmin for the block's codes, scales and minima.
void refit_units(const float* x, AffineBlock* block) {
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;  // a = scale * code, b = -min
  for (int i = 0; i < kSuperBlock; ++i) {
    const double a = block->scales[i / kAffineGroup] * block->codes[i];
    const double b = -block->mins[i / kAffineGroup];
    aa += a * a;
    ab += a * b;
    bb += b * b;
    ax += a * x[i];
    bx += b * x[i];
  }
  const double determinant = aa * bb - ab * ab;
  if (determinant > 0) {
    block->d = as_stored(static_cast<float>((ax * bb - bx * ab) / determinant));
    block->dmin = as_stored(static_cast<float>((bx * aa - ax * ab) / determinant));
  } else if (aa > 0) {
    block->d = as_stored(static_cast<float>(ax / aa));
  } else if (bb > 0) {
    block->dmin = as_stored(static_cast<float>(bx / bb));
  }
}

// --- Symmetric groups: x ~ scale * code ----------------------------------------------------------

float round_to_scale(const float* x, float scale, int zero, int8_t* codes) {
  const float inv = inverse(scale);
  float error = 0.0f;
  for (int i = 0; i < kSymmetricGroup; ++i) {
    const int code = nearest(x[i] * inv + static_cast<float>(zero), 2 * zero - 1) - zero;
    codes[i] = static_cast<int8_t>(code);
    const float miss = scale * static_cast<float>(code) - x[i];
    error += miss * miss;
  }
  return error;
}

float fit_scale(const float* x, const int8_t* codes) {
  int sum_qq = 0;
  float sum_qx = 0.0f;
  for (int i = 0; i < kSymmetricGroup; ++i) {
    sum_qq += codes[i] * codes[i];
    sum_qx += static_cast<float>(codes[i]) * x[i];
  }
  return sum_qq > 0 ? sum_qx / static_cast<float>(sum_qq) : 0.0f;
}

float search_scale(const float* x, int zero) {
  float extreme = x[0];
  for (int i = 1; i < kSymmetricGroup; ++i) {
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  }
  if (extreme == 0.0f) return 0.0f;

  int8_t codes[kSymmetricGroup];
  float best = -extreme / static_cast<float>(zero);
  float best_error = round_to_scale(x, best, zero, codes);
  // Starts that give the extreme value a code from -zero - 1 (clipped) to -zero + 1.
  for (int start = -5; start <= 5; ++start) {
    const float steps = static_cast<float>(zero) + 0.2f * static_cast<float>(start);
    round_to_scale(x, -extreme / steps, zero, codes);
    for (int round = 0; round < 2; ++round) {
      const float scale = fit_scale(x, codes);
      const float error = round_to_scale(x, scale, zero, codes);
      if (error < best_error) {
        best_error = error;
        best = scale;
      }
    }
  }
  return best;
}

float choose_stored(const float* x, float wanted, int zero, int group, SymmetricBlock* block) {
  const int scale = nearest_int8(wanted * inverse(block->d));
  int8_t codes[kSymmetricGroup];
  float best_error = kInfinity;
  for (int s = scale - 1; s <= scale + 1; ++s) {
    if (s < -128 || s > 127) continue;
    const float error = round_to_scale(x, block->d * static_cast<float>(s), zero, codes);
    if (error < best_error || best_error == kInfinity) {
      best_error = error;
      block->scales[group] = s;
      for (int i = 0; i < kSymmetricGroup; ++i) {
        block->codes[kSymmetricGroup * group + i] = codes[i];
      }
    }
  }
  return best_error;
}

float choose_all_stored(const float* x, const float* wanted, int zero, SymmetricBlock* block) {
  float error = 0.0f;
  for (int group = 0; group < 16; ++group) {
    error += choose_stored(x + kSymmetricGroup * group, wanted[group], zero, group, block);
  }
  return error;
}

void refit_unit(const float* x, SymmetricBlock* block) {
  double aa = 0, ax = 0;  // a = scale * code
  for (int i = 0; i < kSuperBlock; ++i) {
    const double a = block->scales[i / kSymmetricGroup] * block->codes[i];
    aa += a * a;
    ax += a * x[i];
  }
  if (aa > 0) block->d = as_stored(static_cast<float>(ax / aa));
}

// How often d (and dmin) are fitted again to the codes they led to; six gain under 0.5 % more.
constexpr int kRefits = 2;

}  // namespace

void fit_affine(const float* x, int max_code, AffineBlock* out) {
  bool positive = true;
  for (int i = 0; i < kSuperBlock; ++i) positive &= x[i] > 0.0f;
  const float sign = positive ? 1.0f : -1.0f;

  Line wanted[8];
  float max_scale = 0.0f, max_min = 0.0f;
  for (int group = 0; group < 8; ++group) {
    wanted[group] = search_line(x + kAffineGroup * group, max_code, sign);
    max_scale = std::fmax(max_scale, wanted[group].scale);
    max_min = std::fmax(max_min, std::fabs(wanted[group].min));
  }
  out->d = as_stored(max_scale / 63.0f);
  out->dmin = as_stored(-sign * max_min / 63.0f);
  float best_error = choose_all_stored(x, wanted, max_code, out);
  for (int refit = 0; refit < kRefits; ++refit) {
    AffineBlock next = *out;
    refit_units(x, &next);
    if (!(next.d >= 0.0f && next.dmin * sign <= 0.0f)) break;
    const float error = choose_all_stored(x, wanted, max_code, &next);
    if (!(error < best_error)) break;
    best_error = error;
    *out = next;
  }
}

void fit_symmetric(const float* x, int zero, SymmetricBlock* out) {
  float wanted[16];
  float largest = 0.0f;
  for (int group = 0; group < 16; ++group) {
    wanted[group] = search_scale(x + kSymmetricGroup * group, zero);
    if (std::fabs(wanted[group]) > std::fabs(largest)) largest = wanted[group];
  }
  out->d = as_stored(largest / -128.0f);
  float best_error = choose_all_stored(x, wanted, zero, out);
  for (int refit = 0; refit < kRefits; ++refit) {
    SymmetricBlock next = *out;
    refit_unit(x, &next);
    const float error = choose_all_stored(x, wanted, zero, &next);
    if (!(error < best_error)) break;
    best_error = error;
    *out = next;
  }
}

}  // namespace kve
