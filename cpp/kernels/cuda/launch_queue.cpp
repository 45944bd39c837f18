#include "kernels/cuda/launch_queue.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace kve::cuda {
namespace {

constexpr size_t kStagingBytes = 8 << 20;
constexpr size_t kAlignment = 256;  // of what is staged
constexpr size_t kArgsAlignment = 16;
constexpr size_t kMostKnown = 8;
constexpr size_t kMostOperations = 8192;

thread_local LaunchQueue* active_queue = nullptr;

}  // namespace

void submit(const Operation& operation, const std::byte* args) {
  if (active_queue != nullptr) {
    active_queue->add(operation, args);
  } else {
    driver::issue(operation, args);
  }
}

// ---- segments ----

void LaunchQueue::Segment::add(const Operation& operation, const std::byte* from) {
  operations.push_back(operation);
  const size_t at = (bytes.size() + kArgsAlignment - 1) / kArgsAlignment * kArgsAlignment;
  args.push_back(at);
  if (operation.kind != Operation::Kind::kernel) return;
  bytes.resize(at + operation.bytes);
  std::memcpy(bytes.data() + at, from, operation.bytes);
}

bool LaunchQueue::Segment::has(size_t at, const Operation& operation,
                               const std::byte* other) const {
  if (at >= operations.size() || !(operations[at] == operation)) return false;
  return operation.kind != Operation::Kind::kernel ||
         std::memcmp(bytes.data() + args[at], other, operation.bytes) == 0;
}

void LaunchQueue::Segment::issue(size_t n) const {
  for (size_t i = 0; i < n; ++i) driver::issue(operations[i], bytes.data() + args[i]);
}

LaunchQueue::Segment LaunchQueue::Segment::first(size_t n) const {
  Segment part;
  for (size_t i = 0; i < n; ++i) part.add(operations[i], bytes.data() + args[i]);
  return part;
}

void LaunchQueue::Segment::make_graph() {
  std::vector<const std::byte*> at;
  for (const size_t place : args) at.push_back(bytes.data() + place);
  graph = std::make_unique<driver::Graph>(operations, at);
}

// ---- the queue ----

LaunchQueue::LaunchQueue() : staging_(driver::lock(kStagingBytes)) {}

LaunchQueue::~LaunchQueue() { driver::unlock(staging_); }

LaunchQueue* LaunchQueue::active() { return active_queue; }

void LaunchQueue::begin() {
  active_queue = this;
  staged_ = 0;
  restart();
}

void LaunchQueue::end() noexcept {
  if (active_queue == this) active_queue = nullptr;
  same_.clear();
  n_same_ = 0;
  current_ = {};
}

std::byte* LaunchQueue::stage(size_t bytes) {
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (staged_ + padded > kStagingBytes) return nullptr;
  std::byte* memory = staging_ + staged_;
  staged_ += padded;
  return memory;
}

// Everything is compared with the known segments at first.
void LaunchQueue::restart() {
  same_.clear();
  for (const auto& segment : known_) same_.push_back(segment.get());
  n_same_ = 0;
  current_ = {};
  too_long_ = false;
}

// Whether one of the segments that have been the same so far goes on with this.
bool LaunchQueue::keep_known(const Operation& operation, const std::byte* args) {
  const auto goes_on = [&](const Segment* segment) {
    return segment->has(n_same_, operation, args);
  };
  if (std::ranges::none_of(same_, goes_on)) return false;
  std::erase_if(same_, [&](const Segment* segment) { return !goes_on(segment); });
  ++n_same_;
  return true;
}

void LaunchQueue::add(const Operation& operation, const std::byte* args) {
  if (!same_.empty()) {
    if (keep_known(operation, args)) return;
    current_ = same_[0]->first(n_same_);
    current_.issue(n_same_);
    same_.clear();
  }
  driver::issue(operation, args);
  too_long_ = too_long_ || current_.operations.size() == kMostOperations;
  if (!too_long_) current_.add(operation, args);
}

void LaunchQueue::remember(Segment segment) {
  if (segment.operations.empty()) return;
  if (known_.size() == kMostKnown) {
    known_.erase(std::ranges::min_element(
        known_, {}, [](const std::unique_ptr<Segment>& known) { return known->used; }));
  }
  segment.used = ++clock_;
  known_.push_back(std::make_unique<Segment>(std::move(segment)));
}

void LaunchQueue::flush() {
  if (same_.empty()) {
    if (!too_long_) remember(std::move(current_));
    return restart();
  }
  if (n_same_ > 0) {
    const auto whole = std::ranges::find_if(
        same_, [&](const Segment* segment) { return segment->operations.size() == n_same_; });
    if (whole != same_.end()) {
      Segment& segment = **whole;
      if (segment.graph == nullptr) segment.make_graph();
      segment.graph->launch();
      segment.used = ++clock_;
      ++replays_;
    } else {
      Segment part = same_[0]->first(n_same_);
      part.issue(n_same_);
      remember(std::move(part));
    }
  }
  restart();
}

}  // namespace kve::cuda
