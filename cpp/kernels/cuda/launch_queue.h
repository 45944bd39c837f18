// The operations of a forward pass, most of which are those of the pass before: the steps of a
// decoded text differ in the bytes that are sent, not in what is launched. So the queue only
// compares what comes with what it knows, and when the device is waited for, all of it goes there
// as one graph. From the first difference on, operations are issued one by one.
//
// Nothing has to be known about operations: two are the same when all their arguments are. What
// changes from step to step (tokens, angles, numbers of rows, tables of pages) is read from device
// memory, which is written from locked memory at a place that is the same in every step.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda/driver.h"

namespace kve::cuda {

class LaunchQueue {
 public:
  LaunchQueue();
  LaunchQueue(const LaunchQueue&) = delete;
  LaunchQueue& operator=(const LaunchQueue&) = delete;
  ~LaunchQueue();

  // From begin() to end() it takes what the calling thread submits.
  void begin();
  void end() noexcept;  // forgets what has not been flushed
  static LaunchQueue* active();

  void add(const Operation& operation, const std::byte* args);
  // Locked memory until waited(); null where there is no room.
  std::byte* stage(size_t bytes);
  // The device is told everything so far.
  void flush();
  // The device has done everything so far.
  void waited() { staged_ = 0; }

  int64_t replays() const { return replays_; }

 private:
  // Between one flush and the next.
  struct Segment {
    std::vector<Operation> operations;
    std::vector<size_t> args;  // where those of operations begin in `bytes`
    std::vector<std::byte> bytes;
    std::unique_ptr<driver::Graph> graph;
    int64_t used = 0;

    void add(const Operation& operation, const std::byte* args);
    bool has(size_t at, const Operation& operation, const std::byte* args) const;
    void issue(size_t n) const;
    Segment first(size_t n) const;
    void make_graph();
  };
  bool keep_known(const Operation& operation, const std::byte* args);
  void remember(Segment segment);
  void restart();

  std::byte* staging_ = nullptr;
  size_t staged_ = 0;
  std::vector<std::unique_ptr<Segment>> known_;
  // Those that begin with the operations so far, which are not issued yet; else null.
  std::vector<Segment*> same_;
  size_t n_same_ = 0;  // operations
  Segment current_;    // where they differ from all
  bool too_long_ = false;
  int64_t clock_ = 0;
  int64_t replays_ = 0;
};

}  // namespace kve::cuda
