// What the sources of one instruction set share. Functions here are defined in the source of their
// name and collected in the table of table.cpp.
#pragma once

#include "kernels/cpu/kernels.h"
#include "simd/simd.h"

namespace kve::KVE_ISA {

// elementwise.cpp
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out);
void rope(float* x, int64_t n_heads, int64_t head_dim, int64_t half, bool interleaved,
          const float* cos, const float* sin);
void gated(int activation, float* gate, const float* up, int64_t n);
void add(float* x, const float* y, int64_t n);
void scale(float* x, float factor, int64_t n);
void softcap(float cap, float* x, int64_t n);
void half_to_f32(const uint16_t* src, float* dst, int64_t n);

// quantize.cpp. Of two planes, the second counts in units of the first's over kPlaneRatio.
constexpr int kPlaneRatio = 254;
void quantize_values(const float* x, int64_t cols, int8_t* codes, int8_t* remainders,
                     float* scales);
void quantize_remainders(const float* x, const int8_t* codes, float scale, int8_t* remainders);

// matvec.cpp
size_t vector_bytes(int64_t cols);
void quantize_rows(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, int planes,
                   std::byte* dst);
size_t matvec_scratch(int64_t cols);
void matvec(const MatmulChunk& chunk, const QuantizedInput& x);

// matvec_native.cpp: the same for types with a kernel of their own; false for the others.
bool matvec_native(const MatmulChunk& chunk, const QuantizedInput& x);

// interleave.cpp
size_t interleaved_tile_bytes(WeightType type, int64_t cols);
void interleave(const InterleaveChunk& chunk);

// tile_input.cpp
size_t tile_input_bytes(int64_t cols, int64_t n_tokens);
void quantize_for_tiles(const float* x, int64_t cols, int64_t token, int64_t n_tokens,
                        float least_error, std::byte* dst);
void end_tile_input(int64_t cols, int64_t n_tokens, std::byte* input);

// matvec_interleaved.cpp
void matvec_tiles(const MatmulChunk& chunk, const std::byte* input);

// pack.cpp
size_t pack_bytes(int64_t cols);
void pack(const float* x, int64_t stride, int64_t n_tokens, int64_t cols, float least_error,
          std::byte* dst);
size_t gated_scratch(int64_t cols, int64_t n_rows, int64_t n_tokens);
void gated_group(const GatedChunk& chunk, const std::byte* packs);
void end_pack(int64_t cols, float least_error, std::byte* pack);

// matmat.cpp
size_t matmat_scratch(int64_t cols, int64_t n_inputs);
void matmat(const MatmulChunk& chunk, const std::byte* packs);

// bf16_products.cpp
#if defined(KVE_ISA_AMX)
extern const PackedProducts kBf16Products;
#else
constexpr PackedProducts kBf16Products = {};
#endif

// gemm.cpp: C = A B, or C += A B when `accumulate`; A [m, k], B [k, n] with ldb >= n rounded up to
// kLanes and rows readable up to there, C [m, n].
constexpr int kGemmCols = kGemmVectors * kLanes;
void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
          float* c, int64_t ldc, bool accumulate);
#if defined(KVE_BF16_DOT)
// The same where each 32-bit element of A and B holds two bf16 numbers that are neighbours in k.
void gemm_bf16(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               int64_t ldb, float* c, int64_t ldc, bool accumulate);
#endif
// AttendMethod::rounded_tiles rounds to bf16 (attend_tiles.cpp), or, where KVE_WORD_TILES is
// defined, to int16 (attend_words.cpp).
#if defined(KVE_BF16_DOT)
constexpr bool kRoundedTiles = true;
#elif defined(KVE_ISA_AVX512)
#define KVE_WORD_TILES 1
constexpr bool kRoundedTiles = true;
#else
constexpr bool kRoundedTiles = false;
#endif

// exact.cpp
size_t exact_scratch(int64_t cols);
void exact(const MatmulChunk& chunk, const float* x, int64_t x_stride);

// attend.cpp
size_t attend_scratch(int key_dim, int value_dim);
#if defined(KVE_WORD_TILES)
size_t weighed_scratch(int key_dim, int value_dim, int64_t n_rows);
// attend_weighed.cpp
size_t staged_tile_bytes(int key_dim, int value_dim);
size_t stage_scratch(int key_dim, int value_dim);
bool stage_tiles(const AttendChunk& chunk);
#endif
int attend_value_stride(int value_dim);
void attend(const AttendChunk& chunk);
void attend_merge(const AttendMerge& merge);

// attend_mass.cpp
size_t mass_scratch(int key_dim);
void attention_mass(const MassChunk& job);
void weigh_scores(const ScoreWeights& job);

// attend_rows.cpp: dot products of f16 rows with a few vectors, out[v * stride + r], written for r
// up to the next multiple of kLanes.
struct RowDots {
  const uint16_t* rows;  // [n][width]
  int64_t n;
  int64_t width;
  const float* vectors;  // readable up to width rounded up to kLanes
  int64_t vector_stride;
  int64_t n_vectors;  // at most kRowVectors
};
void dot_f16_rows(const RowDots& job, float* out, int64_t stride);
void dot_halves(const HalfDots& job);

// half_gram.cpp
int64_t gram_halves(const HalfGram& job);

// cache_codecs.cpp
bool encode_rows(const PageFormat& format, const float* src, int64_t src_stride, std::byte* page,
                 int first_row, int n_rows, std::byte* scratch);
void decode_rows(const PageFormat& format, const std::byte* page, int first_row, int n_rows,
                 int first_channel, int n_channels, float* dst, int64_t dst_stride);

// rebuild.cpp
size_t project_scratch(int width);
void project(const BasisView& basis, int64_t n, int width, float* rows, int64_t stride,
             const float* angles, int64_t angle_stride, float* coefficients, std::byte* scratch);
// strips.cpp
size_t strip_scratch(const StripSide& side, int n_vectors);
void score_strips(const StripScores& job);
void add_strips(const StripSums& job);
// basis.cpp
size_t projection_scratch(const BasisView& basis, int n_positions, int n_vectors);
void project_queries(const QueryProjection& job);
void lift_values(const ValueLift& job);

// peak.cpp
int64_t peak_int8(const int8_t* ones, int64_t rounds, int32_t* sums);
int64_t peak_f32(const float* ones, int64_t rounds, float* sums);
#if defined(__AVX512BF16__) || defined(KVE_ISA_AMX)
int64_t peak_bf16(const uint16_t* ones, int64_t rounds, float* sums);
#else
constexpr int64_t (*peak_bf16)(const uint16_t* ones, int64_t rounds, float* sums) = nullptr;
#endif
void peak_read(const float* values, int64_t n, float* sums);

static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Unnamed namespaces keep the members of structs from becoming weak symbols.
namespace {

// Splits scratch memory into 64-byte aligned pieces; from no memory, it only counts.
class Carver {
 public:
  explicit Carver(std::byte* start) : start_(reinterpret_cast<uintptr_t>(start)) {}
  template <class T>
  T* take(int64_t n) {
    T* piece = reinterpret_cast<T*>(start_ + size_);
    size_ += static_cast<size_t>(round_up(n * static_cast<int64_t>(sizeof(T)), 64));
    return piece;
  }
  size_t size() const { return size_; }
  bool counts_only() const { return start_ == 0; }

 private:
  uintptr_t start_;
  size_t size_ = 0;
};

}  // namespace

}  // namespace kve::KVE_ISA
