// How the coded pages of a cache are read code by code.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/strip_args.h"

namespace kve {

// Whether attention can multiply the codes of a side's pages as they lie in memory, in
// Precision::fast. Pages of plain floats have no codes: false.
bool reads_strips(const SideView& side);

// Pages of one basis and tier of such a side; `basis` as in PageView.
StripSide strip_side(const SideView& side, int basis);

}  // namespace kve
