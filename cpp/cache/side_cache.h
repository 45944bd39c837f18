// The keys or the values of one layer, of one kv head or of all together: sinks in f16, pages of
// coded rows, then the f16 tail.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/span.h"
#include "cache/basis.h"
#include "cache/half_memory.h"
#include "cache/page.h"
#include "cache/row_positions.h"
#include "cache/spec.h"
#include "cache/stats.h"
#include "kernels/backend.h"

namespace kve {

// Rotary position embeddings, as far as stored keys are turned back.
struct Rotation {
  std::vector<double> frequencies;  // [n_pairs] radians per position
  bool interleaved = false;         // as BasisView::interleaved

  bool operator==(const Rotation&) const = default;
};

// What sides are made of.
struct SideSetup {
  SideSpec spec;
  bool values = false;
  int head_dim = 0;
  int n_heads = 0;  // that share pages
  int sinks = 0;
  bool exact_prefill = false;
  // The basis is dense, for the joined rows of all heads, keys as before their rotary embedding.
  bool latent = false;
  std::shared_ptr<const Basis> basis;        // of a projector that is fixed, or latent; else null
  std::shared_ptr<const Rotation> rotation;  // of keys with rotary embeddings; else null

  // Whether one dense basis is for the joined rows of all heads, which share their coefficients.
  bool is_joint() const { return latent && n_heads > 1; }
  int width() const { return head_dim * n_heads; }  // values per row
  int page_width() const;                           // numbers per row of a page that are coded
  int basis_width() const;  // coefficients per row; others than these may be coded (Residual)
  // Of coefficients that lie behind the codes of a page; of width 0: there are none.
  PageFormat coefficients_format() const;
  // Whether components of a basis have bits of their own: where each has a scale of its own.
  bool has_component_bits(int tier = 0) const;
  // Entries of BasisData::strip_bits.
  size_t n_strip_bits() const;
  // Throws ConfigError when the spec does not fit: what `where` is called, and what would fit.
  void check(const std::string& where) const;

 private:
  int coefficients() const;  // of a row of one head, or of all where they are joint
  std::string coefficients_name() const;
  void check_codec(const CodecSpec& codec, const std::string& where) const;
  void check_tiers(const std::string& where) const;
};

using SealJobs = CountedVector<SealJob>;

class SideCache {
 public:
  SideCache(const SideSetup& setup, const std::shared_ptr<MemoryCounter>& counter);
  // Copying shares the pages and bases and copies the tail.

  int rows() const { return sink_rows() + pages_.rows() + tail_rows(); }
  const SideSetup& setup() const { return setup_; }
  const PageList& pages() const { return pages_; }
  SideView view(int head) const;

  // Adds rows [n, width] and the jobs that write them; the bytes are there once the jobs have run.
  // `positions` are those of all rows, here and below. Throws CapacityError; truncate() to the
  // former rows() then undoes what was done.
  void append(ConstMat rows, RowPositions positions, SealJobs* jobs);

  // So many more rows of a prompt follow, 0: no more are known of. A tail in which they wait for
  // the end of the prompt then has memory for all of them at once, if there is enough.
  void expect(int n) noexcept;

  // How many of the oldest rows of the tail are to become pages; the newest `appended` rows do not
  // count. At the end of a prompt that waited to be coded the last segment may be a shorter one.
  int rows_to_seal(int appended, bool ends_prompt) const;
  // How many of the appended and following rows are committed when the tail is next sealed.
  int rows_until_seal(int appended) const;
  // Bases that must be fitted before `n` rows are sealed; the k-th to fit_rows(k, n) rows of the
  // tail, from row k * segment on.
  int bases_to_fit(int n) const;
  int fit_rows(int k, int n) const;
  // The rows of the tail from `first` on, n of which the host may read.
  const uint16_t* tail_halves(int first, int n) const;
  // Rows [first, first + n) of the tail in f32, into out [n, width].
  void read_tail(int first, int n, Mat out) const;

  // Moves the n oldest rows of the tail to pages, in two steps: the jobs that begin_seal() adds
  // write to pages that finish_seal() makes part of the rows or cancel_seal() forgets.
  void begin_seal(int n, std::span<const BasisData> fitted, RowPositions positions, SealJobs* jobs);
  void finish_seal() noexcept;
  void cancel_seal() noexcept;

  // Forgets rows from n on, in two steps: what can fail, then what cannot. Rows that must be coded
  // together with forgotten ones go back to the tail: they are `returning`, as they are decoded.
  // truncate_appended() is for rows that were only appended.
  HalfMemory returning(int n_rows, RowPositions positions) const;
  void truncate(int n_rows, HalfMemory returning) noexcept;
  void truncate_appended(int n_rows) noexcept;
  // Forgets the sinks and n_pages pages.
  void drop_front(int n_pages) noexcept;
  // Gives back the memory that a long chunk left in the tail.
  void release_spare() noexcept;

  // Tiers (cache/tiers.cpp), by the ages of tokens: what their positions lie behind `newest`, that
  // of the newest token. Of full pages of a tier, the newest that is to go down (the newer ones
  // have gone), and the oldest in no other list; -1: none.
  int last_to_lower(int tier, RowPositions positions, int64_t newest) const;
  int first_own(int tier) const;
  int tier_of(int page) const;
  // How old a page is, against the age at which it goes down.
  double ripeness(int page, RowPositions positions, int64_t newest) const;
  // Tokens until a page may go down for its age.
  int tokens_until_lowered(RowPositions positions, int64_t newest) const;
  // Codes a page in the format of the next tier, whose bytes then replace it (PageList::replace).
  SealJob lowering_job(int page, std::byte* to) const;
  void lower(int page, std::span<const std::byte> bytes);

  // All rows of one head in f32, into out [rows(), head_dim].
  void decode(int head, RowPositions positions, Mat out) const;
  // Rows [first, first + n) of one head, as they are decoded, in binary16: out [n, head_dim].
  void read_halves(int head, int first, int n, RowPositions positions, uint16_t* out) const;
  // A side of some of the rows (rising, all sinks among them), as they are decoded: sinks and tail
  // in f16, nothing coded, bases that were fitted once for all. `reassign`: the rows' positions are
  // then 0, 1, ..., and keys are turned to them. Throws CapacityError.
  SideCache with_rows(std::span<const int32_t> rows, RowPositions positions, bool reassign) const;
  // A basis that waits for more rows than there are is fitted to these, in whole pages.
  void fit_soon();
  // Adds the bytes of this side to codes, scales, bases, tail and meta.
  void count(CacheStats* stats) const;

  // For kv_cache_io.
  struct Sizes {
    int sinks = 0;
    int coded = 0;
    int tail = 0;
  };
  Sizes sizes() const { return {sink_rows(), pages_.rows(), tail_rows()}; }
  std::span<const std::shared_ptr<const Basis>> bases() const { return bases_; }
  PageFormat format(int basis) const;  // as in PageView, here and in restore_page()
  size_t page_size(int basis) const;
  // Adds rows whose bytes the caller writes, and then sends: bases first, then a page at a time.
  void restore_basis(std::shared_ptr<const Basis> basis);
  std::byte* restore_page(int rows, int basis);
  uint16_t* restore_sinks(int rows);
  uint16_t* restore_tail(int rows);
  void send() const;
  MemorySource& memory() const { return counter_->source(); }

 private:
  void fetch_floats() const;  // sinks and tail
  int n_tiers() const { return setup_.spec.n_tiers(); }
  // Of the last row that a page has when it is full.
  int64_t last_position(int page, RowPositions positions) const;
  // The first full page that is not older than `age`, or the number of these.
  int first_younger(int age, RowPositions positions, int64_t newest) const;
  size_t values(int rows) const {
    return static_cast<size_t>(rows) * static_cast<size_t>(setup_.width());
  }
  int rows_in(const HalfMemory& memory) const {
    return static_cast<int>(memory.size() / static_cast<size_t>(setup_.width()));
  }
  int sink_rows() const { return rows_in(sinks_); }
  int tail_rows() const { return rows_in(tail_); }
  bool is_eager() const { return setup_.spec.eager() && !setup_.exact_prefill; }
  void move_tail(std::span<const int32_t> rows, RowPositions positions);
  bool waits_for_fit() const;
  int least_to_seal() const;
  int most_tail_rows() const;
  int tail_room(int rows) const;
  int unit_rows() const;
  void reserve_tail(int rows);
  void add_basis(std::shared_ptr<const Basis> basis);
  void add_joint_views(const BasisView& joint);
  void append_floats(ConstMat rows, HalfMemory* memory, SealJobs* jobs);
  void add_page_jobs(int first_row, int n, RowPositions positions, SealJob source, SealJobs* jobs);
  void grow(int n, int basis);
  void drop_last_bases(size_t kept) noexcept;
  // `row`: the first of the page, among all rows of the side.
  static void add_codes(const PageFormat& layout, const PageView& page, Mat out);
  void decode_page(const SideView& side, const PageView& page, int row, RowPositions positions,
                   Mat out) const;

  SideSetup setup_;
  std::shared_ptr<MemoryCounter> counter_;
  int expected_ = 0;       // rows(), once all have come that are known of
  int fit_ = 0;            // rows of the tail to which a basis is fitted once for all
  int sealing_ = 0;        // rows that are in pages and still in the tail
  size_t fitted_now_ = 0;  // bases that came with them
  PageList pages_;
  CountedVector<PageFormat> older_;  // of tiers 1, 2, ...
  PageFormat coefficients_;          // SideSetup::coefficients_format()
  CountedVector<std::shared_ptr<const Basis>> bases_;
  // Of bases_, one for every tier, each for one head of those that share pages. A joint basis has
  // the views of joined rows, then those for every head.
  CountedVector<BasisView> basis_views_;
  HalfMemory sinks_;  // f16 [sink_rows, width]
  HalfMemory tail_;   // f16 [tail_rows, width]
};

}  // namespace kve
