#include "kernels/cpu/isa/isa.h"

#define KVE_STRING(name) KVE_STRING_OF(name)
#define KVE_STRING_OF(name) #name

namespace kve::KVE_ISA {

constexpr int kChunkRows =
    kMatVectors * kLanes > kInterleavedRows ? kMatVectors * kLanes : kInterleavedRows;

extern const Kernels kKernels;
const Kernels kKernels = {
    .name = KVE_STRING(KVE_ISA),
    .rms_norm = rms_norm,
    .rope = rope,
    .gated = gated,
    .add = add,
    .scale = scale,
    .softcap = softcap,
    .half_to_f32 = half_to_f32,
    .vector_bytes = vector_bytes,
    .quantize_rows = quantize_rows,
    .matvec_scratch = matvec_scratch,
    .matvec = matvec,
    .interleaved_tile_bytes = interleaved_tile_bytes,
    .interleave = interleave,
    .tile_input_bytes = tile_input_bytes,
    .quantize_for_tiles = quantize_for_tiles,
    .end_tile_input = end_tile_input,
    .matvec_tiles = matvec_tiles,
    .planes = {.tokens = kMatTokens,
               .pack_bytes = pack_bytes,
               .pack = pack,
               .rows = kChunkRows,
               .most_rows = kChunkRows,
               .most_inputs = int64_t{1} << 40,
               .scratch = matmat_scratch,
               .multiply = matmat,
               .gated_scratch = gated_scratch,
               .gated_group = gated_group,
               .end_pack = end_pack},
    .bf16 = kBf16Products,
    .exact_rows = kGemmCols,
    .exact_scratch = exact_scratch,
    .exact = exact,
    .rounded_tiles = kRoundedTiles,
    .attend_scratch = attend_scratch,
#if defined(KVE_WORD_TILES)
    .staged_tile_bytes = staged_tile_bytes,
    .stage_scratch = stage_scratch,
    .stage_tiles = stage_tiles,
    .weighed_scratch = weighed_scratch,
#else
    .staged_tile_bytes = nullptr,
    .stage_scratch = nullptr,
    .stage_tiles = nullptr,
    .weighed_scratch = nullptr,
#endif
    .attend_value_stride = attend_value_stride,
    .attend = attend,
    .attend_merge = attend_merge,
    .mass_scratch = mass_scratch,
    .attention_mass = attention_mass,
    .weigh_scores = weigh_scores,
    .dot_halves = dot_halves,
    .gram_halves = gram_halves,
    .encode_rows = encode_rows,
    .decode_rows = decode_rows,
    .project_scratch = project_scratch,
    .project = project,
    .strip_scratch = strip_scratch,
    .score_strips = score_strips,
    .add_strips = add_strips,
    .projection_scratch = projection_scratch,
    .project_queries = project_queries,
    .lift_values = lift_values,
    .peak_int8 = peak_int8,
    .peak_f32 = peak_f32,
    .peak_bf16 = peak_bf16,
    .peak_read = peak_read,
};

}  // namespace kve::KVE_ISA
