#include "kernels/cuda/staging.h"

#include <algorithm>

namespace kve::cuda {

Staging::~Staging() {
  if (buffers_ != nullptr) device_.release(buffers_, 2 * buffer_bytes_);
}

void Staging::clear() {
  tasks_.clear();
  ahead_ = kNone;
  generation_ = twins_.generation();
}

// What a pass before has had copied is done.
void Staging::begin_pass() {
  if (generation_ != twins_.generation()) clear();
  if (next_ > 0 && next_ < tasks_.size()) tasks_.resize(next_);
  next_ = 0;
  ahead_ = kNone;
  send_ahead(0);
}

// Tasks take turns with the buffers.
void Staging::begin_task() {
  number_ = device_.in_pass() ? std::min(next_++, kMostTasks - 1) : 0;
  copies_.clear();
  used_ = 0;
}

const std::byte* Staging::add(const std::byte* page, size_t bytes) {
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (used_ + padded > buffer_bytes_) return page;
  if (buffers_ == nullptr) buffers_ = device_.allocate(2 * buffer_bytes_);
  std::byte* to = buffers_ + number_ % 2 * buffer_bytes_ + used_;
  used_ += padded;
  copies_.push_back({page, to, static_cast<int64_t>(bytes)});
  return to;
}

void Staging::remember(Task* task) {
  task->copies = copies_;
  if (copies_.empty()) return;
  if (task->on_device == nullptr || task->on_device->size() < copies_.size()) {
    const size_t room = copies_.size() + copies_.size() / 4 + 16;
    task->on_device = std::make_unique<DeviceArray<PageCopy>>(device_, room);
  }
  device_.upload(task->on_device->data(), copies_.data(), copies_.size() * sizeof(PageCopy));
}

void Staging::send_ahead(size_t number) {
  if (!device_.in_pass() || number >= tasks_.size() || tasks_[number].copies.empty()) return;
  const Task& task = tasks_[number];
  writes_ = twins_.writes();
  copy_pages(task.on_device->data(), std::ssize(task.copies), true);
  ahead_ = number;
}

void Staging::finish_task() {
  if (number_ >= tasks_.size()) tasks_.resize(number_ + 1);
  Task& task = tasks_[number_];
  const bool known = task.copies == copies_;
  // Pages that have been written since may have been copied before or after.
  const bool in_time = known && ahead_ == number_ && writes_ == twins_.writes();
  if (ahead_ != kNone) device_.meet();
  ahead_ = kNone;
  if (!known) remember(&task);
  if (!copies_.empty()) {
    if (!in_time) copy_pages(task.on_device->data(), std::ssize(task.copies), false);
    ++(in_time ? in_time_ : late_);
  }
  send_ahead(number_ + 1);
}

}  // namespace kve::cuda
