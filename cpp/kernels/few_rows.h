#pragma once

namespace kve {

// A row of a product, and a query of attention, gets the same bits in every call with at most this
// many rows. Several sequences, or several guesses at what follows, can then be computed together
// and give what each would alone.
inline constexpr int kFewRows = 8;

}  // namespace kve
