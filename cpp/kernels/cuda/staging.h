// Pages that a limit keeps in locked memory of the host (twin_memory.h), on their way to attention:
// those of a task are copied to one of two buffers on the device, while the task before it is
// computed out of the other. What the next task reads is known from the pass before; where that
// turns out to be wrong, its pages are copied when they are asked for.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/page_copies.h"
#include "kernels/cuda/twin_memory.h"

namespace kve::cuda {

class Staging {
 public:
  // Of a limit of the device's memory for pages, the bytes of each buffer.
  static constexpr size_t buffer_bytes(size_t limit) { return limit / 8 / kAlignment * kAlignment; }
  // The limit of what is left.
  static constexpr size_t limit_of_pages(size_t limit) { return limit - 2 * buffer_bytes(limit); }

  // Both outlive this.
  Staging(Device& device, const TwinMemory& twins, size_t buffer_bytes)
      : device_(device), twins_(twins), buffer_bytes_(buffer_bytes) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  // The first task's pages are on their way.
  void begin_pass();
  void begin_task();
  // Where the kernels of the task find the bytes of a spilled page: in a buffer, or, where that is
  // full, where they lie. Throws CapacityError.
  const std::byte* add(const std::byte* page, size_t bytes);
  // All were added: what is launched from now on finds them, and the next task's are on their way.
  void finish_task();
  // Places of pages are not what they were. The device has done what it was told.
  void clear();

  int64_t in_time() const { return in_time_; }  // tasks that nothing was copied for any more
  int64_t late() const { return late_; }        // others that had spilled pages

 private:
  static constexpr size_t kAlignment = 256;
  static constexpr size_t kNone = SIZE_MAX;
  static constexpr size_t kMostTasks = 4096;
  struct Task {
    std::vector<PageCopy> copies;
    std::unique_ptr<DeviceArray<PageCopy>> on_device;
  };
  void remember(Task* task);
  void send_ahead(size_t number);

  Device& device_;
  const TwinMemory& twins_;
  const size_t buffer_bytes_;
  std::byte* buffers_ = nullptr;  // two
  uint64_t generation_ = 0;       // of twins_, that the tasks are of
  std::vector<Task> tasks_;       // of the pass before, and so far of this one
  size_t next_ = 0;
  // The task, and what it has added.
  size_t number_ = 0;
  std::vector<PageCopy> copies_;
  size_t used_ = 0;
  // The task whose pages are on their way or there, and TwinMemory::writes() when they went.
  size_t ahead_ = kNone;
  uint64_t writes_ = 0;
  int64_t in_time_ = 0;
  int64_t late_ = 0;
};

}  // namespace kve::cuda
