// Fork-join parallelism for one model. Work is split into chunks by the caller, never by the number
// of threads, so results do not depend on how many there are. A job is over when its tasks are: a
// worker that the system has not scheduled in time is not waited for.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace kve {

// A part of memory that is about to be read; nothing is wrong if it is gone by then.
struct Stretch {
  const std::byte* data = nullptr;
  size_t bytes = 0;
};

class ThreadPool {
 public:
  // The caller counts as one of `n_threads` (>= 1).
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // What a thread will probably read first after the job that parallel() is given next. While it
  // waits for the others and for that, it brings `ahead` near to its processor.
  void ask_ahead(int thread, Stretch ahead);

  // Runs task(0) ... task(n - 1), each once, on all threads; returns when all have finished.
  // A task may take a second argument, the number (0 .. size() - 1) of the thread it runs on, to
  // find scratch memory of its own; results must not depend on it.
  // The first exception is rethrown here; tasks that had not started by then are skipped. Not
  // reentrant: a task must not call parallel(). Concurrent callers take turns.
  template <class Task>
  void parallel(int64_t n, const Task& task) {
    if (n <= 0) return;
    run(
        n,
        [](const void* context, int64_t i, int thread) {
          const Task& body = *static_cast<const Task*>(context);
          if constexpr (std::is_invocable_v<const Task&, int64_t, int>) {
            body(i, thread);
          } else {
            body(i);
          }
        },
        &task);
  }

 private:
  using Function = void (*)(const void* context, int64_t index, int thread);
  // Of one thread. Prefetching from where no memory is does no harm, so that nobody minds who reads
  // what is half written.
  struct alignas(64) Ahead {
    std::atomic<const std::byte*> data{nullptr};
    std::atomic<size_t> bytes{0};
  };
  template <class Condition>
  bool wait_while(int thread, const Condition& still);
  void run(int64_t n, Function function, const void* context);
  void open_job(uint32_t generation, int64_t n, Function function, const void* context);
  void drain(uint32_t generation, int thread);
  void run_task(int64_t index, Function function, const void* context, int thread);
  void worker_loop(int thread);
  void stop();

  int spins_ = 0;
  std::unique_ptr<Ahead[]> ahead_;  // of each thread
  std::vector<std::thread> workers_;
  std::mutex callers_;
  // The job. A worker may come late, when its job is over and the next one is being written, so it
  // may only act on what it read here once it has drawn a ticket of the same generation.
  std::atomic<Function> function_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<int64_t> n_tasks_{0};
  alignas(64) std::atomic<uint64_t> ticket_{0};  // generation, then the next task (32 bits each)
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int32_t> done_{0};
  std::atomic<bool> failed_{false};
  std::atomic<bool> stopping_{false};
  std::exception_ptr failure_;
};

// Physical cores, or hardware threads where that cannot be told; at least 1.
int default_thread_count();

}  // namespace kve
