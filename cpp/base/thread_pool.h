// Fork-join parallelism for one model. Work is split into chunks by the caller, never by the number
// of threads, so results do not depend on how many there are.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace kve {

class ThreadPool {
 public:
  // The caller counts as one of `n_threads` (>= 1).
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs task(0) ... task(n - 1), each once, on all threads; returns when all have finished.
  // The first exception is rethrown here. Not reentrant: a task must not call parallel().
  // Concurrent callers take turns.
  template <class Task>
  void parallel(int64_t n, const Task& task) {
    if (n <= 0) return;
    if (n == 1 || workers_.empty()) {
      for (int64_t i = 0; i < n; ++i) task(i);
      return;
    }
    run(n, [](const void* context, int64_t i) { (*static_cast<const Task*>(context))(i); }, &task);
  }

 private:
  using Function = void (*)(const void* context, int64_t index);
  void run(int64_t n, Function function, const void* context);
  void drain();
  void worker_loop();

  std::vector<std::thread> workers_;
  std::mutex callers_;
  // The job: written by the caller before `generation_` is bumped, read by workers after.
  Function function_ = nullptr;
  const void* context_ = nullptr;
  int64_t n_tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int32_t> busy_{0};
  std::atomic<bool> stopping_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

// Physical cores, or hardware threads where that cannot be told; at least 1.
int default_thread_count();

}  // namespace kve
