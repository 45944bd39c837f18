#include "cache/side_cache.h"

#include <algorithm>

#include "base/error.h"
#include "cache/half_rows.h"

namespace kve {
namespace {

constexpr CodecSpec kF16{.id = CodecId::f16};
constexpr int kTailStep = 16;  // rows

}  // namespace

SideCache::SideCache(const SideSetup& setup, const std::shared_ptr<MemoryCounter>& counter)
    : setup_(setup),
      counter_(counter),
      fit_(setup.spec.projector.fit),
      pages_(counter),
      older_(CountedAllocator<PageFormat>(counter)),
      coefficients_(setup.coefficients_format()),
      bases_(CountedAllocator<std::shared_ptr<const Basis>>(counter)),
      basis_views_(CountedAllocator<BasisView>(counter)),
      sinks_(counter),
      tail_(counter) {
  older_.reserve(setup_.spec.older.size());
  for (const TierSpec& tier : setup_.spec.older) {
    older_.push_back(page_format(tier.codec, setup_.page_width(), setup_.values));
  }
  if (setup_.basis != nullptr) add_basis(setup_.basis);
}

PageFormat SideCache::format(int basis) const {
  const CodecSpec& codec = setup_.spec.codec_of(basis % n_tiers());
  PageFormat format = page_format(codec, setup_.page_width(), setup_.values);
  if (!basis_views_.empty()) {
    format.coded.strip_bits = basis_views_[static_cast<size_t>(basis)].strip_bits;
  }
  return format;
}

size_t SideCache::page_size(int basis) const {
  const PageFormat codes = format(basis);
  if (coefficients_.width == 0) return page_bytes(codes);
  return end_of_page(codes) + page_bytes(coefficients_);
}

SideView SideCache::view(int head) const {
  const bool joint = setup_.is_joint();
  const int n_channels = joint ? setup_.page_width() : setup_.page_width() / setup_.n_heads;
  const BasisView* bases = basis_views_.empty() ? nullptr : basis_views_.data();
  return {.width = setup_.head_dim,
          .format = format(0),
          .older = older_,
          .coefficients = coefficients_.width > 0 ? &coefficients_ : nullptr,
          .first_channel = joint ? 0 : head * n_channels,
          .n_channels = n_channels,
          .pages = pages_.views(),
          .bases = joint ? bases + (1 + head) * n_tiers() : bases,
          .sinks = sinks_.data() + head * setup_.head_dim,
          .sink_rows = sink_rows(),
          .tail = tail_.data() + head * setup_.head_dim,
          .tail_rows = tail_rows(),
          .row_stride = setup_.width()};
}

void SideCache::add_basis(std::shared_ptr<const Basis> basis) {
  const int anchor = setup_.latent ? 1 : setup_.spec.projector.anchor;
  BasisView view = basis->view();
  // Rows of which a latent can show everything are to be kept as they are.
  if (setup_.latent) view.projected_twice = true;
  if (anchor > 0 && setup_.rotation != nullptr) {
    view.anchor = anchor;
    view.frequencies = setup_.rotation->frequencies.data();
    view.n_pairs = static_cast<int32_t>(setup_.rotation->frequencies.size());
    view.interleaved = setup_.rotation->interleaved;
  }
  if (setup_.is_joint()) {
    add_joint_views(view);
    bases_.push_back(std::move(basis));
    return;
  }
  // Heads that share pages have the same blocks.
  view.dim = setup_.head_dim;
  view.width = setup_.basis_width() / setup_.n_heads;
  basis_views_.reserve(basis_views_.size() + static_cast<size_t>(n_tiers()));
  const uint8_t* strip_bits = view.strip_bits;
  bases_.push_back(std::move(basis));
  for (int tier = 0; tier < n_tiers(); ++tier) {
    const bool apart = strip_bits != nullptr && setup_.has_component_bits(tier);
    view.strip_bits = apart ? strip_bits + tier * key_strips(view.width) : nullptr;
    basis_views_.push_back(view);
  }
}

// A head's values are some rows of the lift, from the coefficients of all heads.
void SideCache::add_joint_views(const BasisView& joint) {
  KVE_ASSERT(joint.lift8 == nullptr);
  const auto tiers = static_cast<size_t>(n_tiers());
  basis_views_.reserve(static_cast<size_t>(1 + setup_.n_heads) * tiers);
  basis_views_.insert(basis_views_.end(), tiers, joint);
  for (int head = 0; head < setup_.n_heads; ++head) {
    BasisView own = joint;
    own.dim = own.block = setup_.head_dim;
    own.lift += int64_t{head} * setup_.head_dim * joint.block_width;
    if (own.row != nullptr) own.row += int64_t{head} * setup_.head_dim;
    basis_views_.insert(basis_views_.end(), tiers, own);
  }
}

// Splits rows [first_row, first_row + n) of the pages into one job per page; `source` says where
// the first of them comes from.
void SideCache::add_page_jobs(int first_row, int n, RowPositions positions, SealJob source,
                              SealJobs* jobs) {
  source.width = setup_.width();
  source.latent_heads = setup_.latent ? setup_.n_heads : 0;
  source.coefficients = coefficients_;
  source.codes_first = setup_.spec.projector.residual == Residual::fitted;
  for (int done = 0; done < n; done += source.n_rows) {
    const int row = first_row + done;
    const auto index = static_cast<size_t>(row / kPageTokens);
    const int basis = pages_.views()[index].basis;
    source.format = format(basis);
    source.basis = basis_views_.empty() ? nullptr : &basis_views_[static_cast<size_t>(basis)];
    source.first_row = row % kPageTokens;
    source.n_rows = std::min(n - done, kPageTokens - source.first_row);
    source.position = static_cast<int32_t>(positions.of(sink_rows() + row));
    if (positions.rows != nullptr) {
      source.positions = positions.rows + sink_rows() + row - source.first_row;
      source.page_offset = setup_.sinks;
    }
    source.page = pages_.writable(index);
    jobs->push_back(source);
    if (source.f32 != nullptr) source.f32 += source.n_rows * source.stride;
    if (source.f16 != nullptr) source.f16 += source.n_rows * source.stride;
  }
}

// Sinks and tail are laid out as one f16 page of any length.
void SideCache::append_floats(ConstMat rows, HalfMemory* memory, SealJobs* jobs) {
  const int first_row = rows_in(*memory);
  const int n = static_cast<int>(rows.rows);
  memory->resize(values(first_row + n));
  jobs->push_back({.format = page_format(kF16, setup_.width(), setup_.values),
                   .f32 = rows.data,
                   .stride = rows.stride,
                   .n_rows = n,
                   .width = setup_.width(),
                   .page = reinterpret_cast<std::byte*>(memory->data()),
                   .first_row = first_row});
}

void SideCache::grow(int n, int basis) { pages_.grow(n, page_size(basis), basis); }

void SideCache::append(ConstMat rows, RowPositions positions, SealJobs* jobs) {
  // Sinks are the first rows of all: a cache that has dropped them gets no new ones.
  const bool at_start = pages_.rows() == 0 && tail_.empty() && positions.first == 0;
  const int to_sinks =
      at_start ? std::min(static_cast<int>(rows.rows), setup_.sinks - sink_rows()) : 0;
  if (to_sinks > 0) {
    sinks_.reserve(values(setup_.sinks));
    append_floats(rows.block(0, to_sinks), &sinks_, jobs);
    rows = rows.block(to_sinks, rows.rows - to_sinks);
  }
  if (rows.rows == 0) return;
  const int n = static_cast<int>(rows.rows);
  if (is_eager()) {
    const int first_row = pages_.rows();
    grow(n, 0);
    add_page_jobs(first_row, n, positions, {.f32 = rows.data, .stride = rows.stride}, jobs);
    return;
  }
  reserve_tail(tail_rows() + n);
  append_floats(rows, &tail_, jobs);
}

// The rows that the tail has memory for when it holds `rows`. Token by token it never exceeds
// most_tail_rows() + 1, and grows from the rows that always stay to that in steps that are small
// against what is there: little is unused, and it seldom moves. A chunk gets what it needs, and a
// prompt that waits to be coded some more.
int SideCache::tail_room(int rows) const {
  const int waiting = expected_ - sink_rows() - pages_.rows();
  if (setup_.exact_prefill && waiting >= rows) return waiting;
  int step = kTailStep;
  while (2 * step <= rows / 8) step *= 2;
  const int from = rows < setup_.spec.tail ? 0 : setup_.spec.tail;
  const int room = from + (rows - from + step - 1) / step * step;
  const int most = most_tail_rows() + 1;
  return rows > most && setup_.exact_prefill ? room : std::max(rows, std::min(room, most));
}

void SideCache::reserve_tail(int rows) {
  if (values(rows) <= tail_.capacity()) return;
  try {
    tail_.reserve(values(tail_room(rows)));
  } catch (const CapacityError&) {
    if (expected_ == 0) throw;
    expected_ = 0;
    tail_.reserve(values(tail_room(rows)));
  }
}

void SideCache::expect(int n) noexcept {
  expected_ = n > 0 ? rows() + n : 0;
  if (n == 0) release_spare();
}

void SideCache::release_spare() noexcept {
  // Some spare is kept, so that tokens that come and go move nothing.
  if (tail_.capacity() <= values(tail_room(tail_rows() + kTailStep))) return;
  try {
    HalfMemory smaller(counter_);
    smaller.reserve(values(tail_room(tail_rows())));
    smaller.resize(tail_.size());
    memory().copy(smaller.data(), tail_.data(), tail_.size() * sizeof(uint16_t));
    tail_.swap(smaller);
  } catch (const CapacityError&) {
    // No memory for the smaller copy: keep the large one.
  }
}

bool SideCache::waits_for_fit() const { return setup_.spec.projector.fit > 0 && bases_.empty(); }

int SideCache::unit_rows() const { return rows_per_unit(format(0)); }

// The fewest committed rows in the tail of which some are sealed.
int SideCache::least_to_seal() const {
  const SideSpec& spec = setup_.spec;
  if (is_eager()) return INT32_MAX;
  if (waits_for_fit()) return fit_ + spec.tail;
  if (spec.seal == Seal::window) return std::max(spec.tail, 1);
  if (spec.seal == Seal::page && spec.projector.segment == 0) {
    return spec.tail + kPageTokens - pages_.rows() % kPageTokens;
  }
  return spec.tail + spec.unit();
}

int SideCache::most_tail_rows() const {
  const SideSpec& spec = setup_.spec;
  if (is_eager()) return 0;
  if (waits_for_fit()) return fit_ + spec.tail - 1;
  if (spec.seal == Seal::window) return std::max(spec.tail, 1) - 1;
  return spec.tail + spec.unit() - 1;
}

int SideCache::rows_to_seal(int appended, bool ends_prompt) const {
  const int rows = tail_rows() - appended;
  if (ends_prompt && setup_.exact_prefill && setup_.spec.projector.segment > 0) {
    return std::max(0, rows - setup_.spec.tail) / kPageTokens * kPageTokens;
  }
  const int least = least_to_seal();
  if (rows < least) return 0;
  const SideSpec& spec = setup_.spec;
  const int kept = spec.seal == Seal::window ? 0 : spec.tail;
  const int first = least - kept;  // what the first seal takes
  const int unit =
      spec.projector.segment > 0 || spec.seal != Seal::page ? spec.unit() : kPageTokens;
  return first + (rows - least) / unit * unit;
}

int SideCache::rows_until_seal(int appended) const {
  if (is_eager()) return INT32_MAX;
  const int to_sinks = rows() == sink_rows() ? setup_.sinks - sink_rows() : 0;
  return std::max(1, to_sinks + least_to_seal() - (tail_rows() - appended));
}

int SideCache::fit_rows(int k, int n) const {
  const int segment = setup_.spec.projector.segment;
  return segment > 0 ? std::min(segment, n - k * segment) : fit_;
}

int SideCache::bases_to_fit(int n) const {
  const ProjectorSpec& projector = setup_.spec.projector;
  if (n == 0 || projector.is_fixed()) return 0;
  if (projector.kind == ProjectorSpec::Kind::think) return bases_.empty() ? 1 : 0;
  const int segment = projector.segment;
  return segment > 0 ? (n + segment - 1) / segment : waits_for_fit() ? 1 : 0;
}

const uint16_t* SideCache::tail_halves(int first, int n) const {
  const uint16_t* rows = tail_.data() + values(first);
  memory().fetch(rows, values(n) * sizeof(uint16_t));
  return rows;
}

void SideCache::read_tail(int first, int n, Mat out) const {
  const uint16_t* rows = tail_halves(first, n);
  for (int r = 0; r < n; ++r) halves_to_floats(rows + values(r), out.row(r), setup_.width());
}

void SideCache::begin_seal(int n, std::span<const BasisData> fitted, RowPositions positions,
                           SealJobs* jobs) {
  if (n == 0) return;
  const int first_row = pages_.rows();
  for (const BasisData& data : fitted) {
    const int most = (INT16_MAX + 1) / n_tiers();
    if (bases_.size() >= static_cast<size_t>(most)) {
      throw CapacityError(
          message("cache ", setup_.spec.str(), ": expected at most ", most, " segments"));
    }
    add_basis(Basis::make(data, counter_));
    ++fitted_now_;
  }
  const int segment = setup_.spec.projector.segment;
  const int step = segment > 0 ? segment : n;
  const int n_bases = static_cast<int>(bases_.size());
  for (int done = 0; done < n; done += step) {
    const int new_before = static_cast<int>(fitted.size()) - done / step;
    const int basis = segment > 0 ? n_bases - new_before : std::max(0, n_bases - 1);
    const int rows = std::min(step, n - done);
    grow(rows, basis * n_tiers());
    sealing_ += rows;
  }
  add_page_jobs(first_row, n, positions, {.f16 = tail_.data(), .stride = setup_.width()}, jobs);
}

void SideCache::finish_seal() noexcept {
  tail_.erase_front(values(sealing_));
  sealing_ = 0;
  fitted_now_ = 0;
  release_spare();
}

void SideCache::cancel_seal() noexcept {
  pages_.truncate(pages_.rows() - sealing_);
  drop_last_bases(bases_.size() - fitted_now_);
  sealing_ = 0;
  fitted_now_ = 0;
}

void SideCache::truncate_appended(int n_rows) noexcept {
  const int coded = std::clamp(n_rows - sink_rows(), 0, pages_.rows());
  const int in_tail = std::max(0, n_rows - sink_rows() - coded);
  pages_.truncate(coded);
  if (values(in_tail) < tail_.size()) tail_.resize(values(in_tail));
  if (values(n_rows) < sinks_.size()) sinks_.resize(values(n_rows));
}

HalfMemory SideCache::returning(int n_rows, RowPositions positions) const {
  HalfMemory out(counter_);
  const int coded = n_rows - sink_rows();
  if (coded <= 0 || coded >= pages_.rows()) return out;
  // A segment's basis serves whole pages, and rows do not return to an older page.
  const bool whole = setup_.spec.projector.segment > 0 || tier_of(coded / kPageTokens) > 0;
  const int unit = whole ? kPageTokens : unit_rows();
  const int n = coded % unit;
  if (n == 0) return out;
  const int first = coded / kPageTokens * kPageTokens;
  PageView page = pages_.views()[static_cast<size_t>(coded / kPageTokens)];
  page.rows = static_cast<int16_t>(coded - first);
  std::vector<float> rows(values(page.rows));
  const Mat all(rows.data(), page.rows, setup_.width());
  for (int head = 0; head < setup_.n_heads; ++head) {
    decode_page(view(head), page, sink_rows() + first, positions,
                all.columns(int64_t{head} * setup_.head_dim, setup_.head_dim));
  }
  out.reserve(values(tail_room(n)));
  out.resize(values(n));
  encode_rows(page_format(kF16, setup_.width(), setup_.values), all.row(page.rows - n), all.stride,
              reinterpret_cast<std::byte*>(out.data()), 0, n, nullptr);
  memory().send(out.data(), out.size() * sizeof(uint16_t));
  return out;
}

void SideCache::truncate(int n_rows, HalfMemory returning) noexcept {
  if (returning.empty()) {
    truncate_appended(n_rows);
  } else {
    pages_.truncate(n_rows - sink_rows() - rows_in(returning));
    tail_.swap(returning);
  }
  const std::span<const PageView> pages = pages_.views();
  if (setup_.spec.projector.segment > 0) {
    drop_last_bases(pages.empty() ? 0 : static_cast<size_t>(pages.back().basis / n_tiers()) + 1);
  } else if (n_rows == 0 && !setup_.spec.projector.is_fixed()) {
    drop_last_bases(0);
  }
  if (n_rows == 0) fit_ = setup_.spec.projector.fit;
  release_spare();
}

void SideCache::drop_last_bases(size_t kept) noexcept {
  while (bases_.size() > kept) {
    bases_.pop_back();
    basis_views_.resize(bases_.size() * static_cast<size_t>(n_tiers()));
  }
}

void SideCache::drop_front(int n_pages) noexcept {
  sinks_.release();
  pages_.drop_front(n_pages);
  if (setup_.spec.projector.segment == 0) return;
  const std::span<const PageView> pages = pages_.views();
  const int unused =
      pages.empty() ? static_cast<int>(bases_.size()) : pages.front().basis / n_tiers();
  bases_.erase(bases_.begin(), bases_.begin() + unused);
  basis_views_.erase(basis_views_.begin(), basis_views_.begin() + unused * n_tiers());
  pages_.renumber_bases(unused * n_tiers());
}

void SideCache::count(CacheStats* stats) const {
  for (const PageView& page : pages_.views()) {
    const PageFormat page_format = format(page.basis);
    const size_t codes =
        code_bytes(page_format) + (coefficients_.width > 0 ? code_bytes(coefficients_) : 0);
    stats->codes += static_cast<int64_t>(codes);
    stats->scales += page.bytes - static_cast<int64_t>(codes);
    const MemoryPlace place = memory().place_of(page.data);
    if (place == MemoryPlace::device) stats->on_device += page.bytes;
    if (place == MemoryPlace::spilled) stats->spilled += page.bytes;
  }
  for (const std::shared_ptr<const Basis>& basis : bases_) {
    if (basis != setup_.basis) stats->bases += static_cast<int64_t>(basis->bytes());
  }
  stats->tail += static_cast<int64_t>((sinks_.capacity() + tail_.capacity()) * sizeof(uint16_t));
  stats->meta += static_cast<int64_t>(pages_.meta_bytes() + older_.capacity() * sizeof(PageFormat) +
                                      bases_.capacity() * sizeof(std::shared_ptr<const Basis>) +
                                      basis_views_.capacity() * sizeof(BasisView));
}

void SideCache::restore_basis(std::shared_ptr<const Basis> basis) { add_basis(std::move(basis)); }

std::byte* SideCache::restore_page(int rows, int basis) {
  grow(rows, basis);
  return pages_.writable(pages_.views().size() - 1);
}

uint16_t* SideCache::restore_sinks(int rows) {
  sinks_.reserve(values(setup_.sinks));
  sinks_.resize(values(rows));
  return sinks_.data();
}

uint16_t* SideCache::restore_tail(int rows) {
  reserve_tail(rows);
  tail_.resize(values(rows));
  return tail_.data();
}

}  // namespace kve
