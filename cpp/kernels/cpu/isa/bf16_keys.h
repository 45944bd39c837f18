// Keys of a dense basis as tiles of bf16: the tile unit lifts a page's coefficients.
#pragma once

#include "kernels/cpu/isa/word_keys.h"

#if defined(KVE_BF16_TILES)

namespace kve::KVE_ISA {

// The lift of a basis as the product wants it. Its rows are divided by factors that belong to their
// values from then on, so that numbers of int8, and those of a Hadamard matrix, stay what they are.
void round_lift(WordKeys* keys, const BasisView& basis);
// The keys of a page to `tile`, `n` of them; `angles` are those of the anchor, or null. False where
// the page or the lift has numbers that are none; nothing that counts is written then.
bool round_lifted_keys(WordKeys* keys, const StripSide& side, const PageView& page,
                       const BasisView& basis, const float* angles, int32_t n, WordTile* tile);

}  // namespace kve::KVE_ISA

#endif
