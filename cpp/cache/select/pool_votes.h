// What SnapKV and PyramidKV have in common.
#pragma once

#include <span>

#include "cache/select/selector.h"

namespace kve {

// SnapKV's votes (arXiv 2404.14469): the weights that the newest `window` queries give to the rows
// before them, averaged over queries, then over `kernel` neighbours (zeros beyond both ends), then
// over the query heads of the group. The window itself always stays.
void pool_votes(const LayerPlace& place, const HeadRows& rows, int window, int kernel,
                std::span<float> out);

}  // namespace kve
