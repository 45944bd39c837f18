// Outliers of a group: the values farthest from its middle, which a page stores beside its codes as
// they are (binary16), so that the range of the codes need not hold them (dense and sparse, KVQuant
// arXiv 2401.18079; here a fixed number per group, so that pages have fixed sizes).
//
// The middle is the median where the coding has a zero, else 0. Of values as far from it the larger
// one counts, of equal ones the first. In the group an outlier is replaced by a stand-in that
// changes no range and no mean square.
#pragma once

#include <math.h>

#include "formats/cache/coded_page.h"
#include "formats/cache/group_fit.h"

namespace kve {

constexpr int kMostLanes = 16;  // of any instruction set

// Floats of scratch memory for groups of n values.
KVE_HD size_t outlier_scratch(int n) { return static_cast<size_t>(n) * kMostLanes; }

template <class F>
KVE_HD void order_lanes(float* a, float* b) {
  const F low = load_lanes<F>(a);
  const F high = load_lanes<F>(b);
  store_lanes(a, smaller(low, high));
  store_lanes(b, larger(low, high));
}

// Sorts the lanes of x [n][lanes of F], each by itself: merge exchange (Knuth, volume 3, algorithm
// 5.2.2M), whose comparisons do not depend on the values.
template <class F>
KVE_HD void sort_lanes(float* x, int n) {
  constexpr int kStep = kLanesOf<F>;
  int most = 1;
  while (2 * most < n) most *= 2;
  for (int p = most; p > 0; p /= 2) {
    int distance = p;
    int rest = 0;
    for (int q = most;; q /= 2) {
      for (int i = 0; i + distance < n; ++i) {
        if ((i & p) == rest) order_lanes<F>(x + i * kStep, x + (i + distance) * kStep);
      }
      if (q == p) break;
      distance = q - p;
      rest = p;
    }
  }
}

// The outliers of one group: its `below` smallest values, and its `above` largest.
struct OutlierChoice {
  int below;
  int above;
  float least;  // of the values that stay
  float most;
  int least_ties;  // values equal to these two that go, the first ones
  int most_ties;
  float middle;
};

// `x`: the group in order, `stride` apart.
KVE_HD OutlierChoice choose_outliers(const float* x, int64_t stride, int n, int count,
                                     bool has_middle) {
  OutlierChoice choice{};
  if (has_middle) choice.middle = x[(n - 1) / 2 * stride] / 2 + x[n / 2 * stride] / 2;
  int low = 0;
  int high = n - 1;
  for (int k = 0; k < count; ++k) {
    const bool upper = x[high * stride] - choice.middle >= choice.middle - x[low * stride];
    high -= upper ? 1 : 0;
    low += upper ? 0 : 1;
  }
  choice.below = low;
  choice.above = n - 1 - high;
  choice.least = x[low * stride];
  choice.most = x[high * stride];
  for (int i = low; i > 0 && x[(i - 1) * stride] == choice.least; --i) ++choice.least_ties;
  for (int i = high; i < n - 1 && x[(i + 1) * stride] == choice.most; ++i) ++choice.most_ties;
  return choice;
}

// What stands in for outliers: nothing that codes are fitted to may notice.
KVE_HD float outlier_stand_in(Coding coding, const OutlierChoice& choice, const float* x,
                              int64_t stride, int n) {
  if (has_zero(coding)) {
    const float raised = choice.middle < choice.least ? choice.least : choice.middle;
    // Sorting may swap the two zeros: the stand-in is never the negative one.
    return (raised > choice.most ? choice.most : raised) + 0.0f;
  }
  if (coding != Coding::lloyd) return 0;
  double squares = 0;
  for (int i = choice.below; i < n - choice.above; ++i) {
    squares += static_cast<double>(x[i * stride]) * static_cast<double>(x[i * stride]);
  }
  return static_cast<float>(sqrt(squares / (n - choice.below - choice.above)));
}

// Groups side by side, whose outliers are to be taken out.
struct OutlierBlock {
  float* values;  // value i of group g: values[i * stride + g]
  int64_t stride;
  const float* exact;  // what is stored: exact[i * exact_step + g * exact_stride]
  int64_t exact_step;
  int64_t exact_stride;
  int n_groups;
};

// Stores the outliers of group g, whose values in order are `sorted`, in rising order of places.
KVE_HD void take_outliers_of(const CodedPage& page, const OutlierBlock& block, int g,
                             const float* sorted, int64_t stride, size_t index, std::byte* data) {
  const int n = page.group;
  OutlierChoice left =
      choose_outliers(sorted, stride, n, page.outliers, has_zero(page.coding.coding));
  const float stand_in = outlier_stand_in(page.coding.coding, left, sorted, stride, n);
  const PageOffsets at = page_offsets(page);
  size_t entry = index;
  for (int i = 0; i < n; ++i) {
    float* x = block.values + i * block.stride + g;
    const bool low_tie = left.below > 0 && *x == left.least && left.least_ties > 0;
    const bool high_tie = !low_tie && left.above > 0 && *x == left.most && left.most_ties > 0;
    if (!low_tie && !high_tie && *x >= left.least && *x <= left.most) continue;
    left.least_ties -= low_tie ? 1 : 0;
    left.most_ties -= high_tie ? 1 : 0;
    const float exact = block.exact[i * block.exact_step + g * block.exact_stride];
    write_outlier(page, at, entry, i, saturate_to_half(exact), data);
    entry += n_scales(page);
    *x = stand_in;
  }
}

template <class F>
KVE_HD void take_outliers_of_lanes(const CodedPage& page, const OutlierBlock& block, int first,
                                   size_t index, float* scratch, std::byte* data) {
  constexpr int kStep = kLanesOf<F>;
  for (int i = 0; i < page.group; ++i) {
    store_lanes(scratch + i * kStep, load_lanes<F>(block.values + i * block.stride + first));
  }
  sort_lanes<F>(scratch, page.group);
  for (int l = 0; l < kStep; ++l) {
    take_outliers_of(page, block, first + l, scratch + l, kStep,
                     index + static_cast<size_t>(first + l), data);
  }
}

// Takes the outliers of groups side by side out of them and into the page, where the first group
// has the given number; scratch: outlier_scratch().
KVE_HD void take_outliers(const CodedPage& page, const OutlierBlock& block, size_t index,
                          float* scratch, std::byte* data) {
  int g = 0;
  for (; g + kVectorLanes <= block.n_groups; g += kVectorLanes) {
    take_outliers_of_lanes<Floats>(page, block, g, index, scratch, data);
  }
  for (; g < block.n_groups; ++g) {
    take_outliers_of_lanes<float>(page, block, g, index, scratch, data);
  }
}

// Puts the outliers of a range of rows and channels where they belong: dst as in decode_page(). A
// place outside of the range is passed over, whatever group it is said to be of.
KVE_HD void put_outliers(const CodedPage& page, const std::byte* data, int first_row, int n_rows,
                         int first_channel, int n_channels, float* dst, int64_t dst_stride) {
  const PageOffsets at = page_offsets(page);
  const bool by_token = page.per == Per::token;
  const int coded_end = coded_width(page);
  const int end_row = first_row + n_rows;
  const int end_channel =
      first_channel + n_channels < coded_end ? first_channel + n_channels : coded_end;
  const int row_step = by_token ? 1 : page.group;
  const int channel_step = by_token ? page.group : 1;
  for (int e = 0; e < page.outliers; ++e) {
    for (int t = first_row / row_step * row_step; t < end_row; t += row_step) {
      for (int c = first_channel / channel_step * channel_step; c < end_channel;
           c += channel_step) {
        const size_t entry = static_cast<size_t>(e) * n_scales(page) + scale_index(page, t, c);
        const int place = outlier_place(page, at, entry, data);
        const int row = by_token ? t : t + place;
        const int channel = by_token ? c + place : c;
        if (row < first_row || row >= end_row) continue;
        if (channel < first_channel || channel >= first_channel + n_channels) continue;
        dst[(row - first_row) * dst_stride + (channel - first_channel)] =
            outlier_value(at, entry, data);
      }
    }
  }
}

// Whether all outliers stand within their groups, in rising order of places.
KVE_HD bool are_outliers_sound(const CodedPage& page, const std::byte* data) {
  const PageOffsets at = page_offsets(page);
  const size_t n_groups = n_scales(page);
  for (size_t g = 0; g < n_groups; ++g) {
    int last = -1;
    for (int e = 0; e < page.outliers; ++e) {
      const int place = outlier_place(page, at, static_cast<size_t>(e) * n_groups + g, data);
      if (place <= last || place >= page.group) return false;
      last = place;
    }
  }
  return true;
}

}  // namespace kve
