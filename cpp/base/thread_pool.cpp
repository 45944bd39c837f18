#include "base/thread_pool.h"

#include <system_error>
#include <utility>

#include "base/error.h"

#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace kve {
namespace {

// Joins inside a decode step come every few microseconds: spinning that long is far cheaper than a
// futex wake (about 26 us); after that the processor is given back.
constexpr int kSpins = 4000;
// With more threads than processors, spinning keeps the thread that is waited for from running.
constexpr int kCrowdedSpins = 20;
constexpr int kYields = 50;

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins, then yields, while `still` holds; false when it gave up waiting.
template <class Condition>
bool spin_while(int spins, const Condition& still) {
  for (int i = 0; i < spins; ++i) {
    if (!still()) return true;
    pause_briefly();
  }
  for (int i = 0; i < kYields; ++i) {
    if (!still()) return true;
    std::this_thread::yield();
  }
  return !still();
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
  if (n_threads < 1 || n_threads > 1024) {
    throw ConfigError(message("threads: expected 1 to 1024, found ", n_threads));
  }
  spins_ = n_threads <= default_thread_count() ? kSpins : kCrowdedSpins;
  workers_.reserve(static_cast<size_t>(n_threads - 1));
  try {
    for (int i = 1; i < n_threads; ++i) workers_.emplace_back([this, i] { worker_loop(i); });
  } catch (const std::system_error& error) {
    stop();
    throw CapacityError(message("threads: expected to start ", n_threads, ", found that only ",
                                workers_.size() + 1, " can run: ", error.what()));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t n, Function function, const void* context) {
  const std::lock_guard lock(callers_);
  if (n == 1 || workers_.empty()) {
    for (int64_t i = 0; i < n; ++i) function(context, i, 0);
    return;
  }
  function_ = function;
  context_ = context;
  n_tasks_ = n;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  drain(0);
  const auto others_busy = [this] { return busy_.load(std::memory_order_acquire) != 0; };
  while (!spin_while(spins_, others_busy)) {
    const int32_t busy = busy_.load(std::memory_order_acquire);
    if (busy != 0) busy_.wait(busy);
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::drain(int thread) {
  for (;;) {
    const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= n_tasks_) return;
    try {
      function_(context_, index, thread);
    } catch (...) {
      const std::lock_guard lock(failure_mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_.store(n_tasks_, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::worker_loop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const auto unchanged = [&] { return generation_.load(std::memory_order_acquire) == seen; };
    while (!spin_while(spins_, unchanged)) generation_.wait(seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load()) return;
    drain(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_all();
  }
}

int default_thread_count() {
#ifdef __linux__
  // Respects taskset and container limits, which hardware_concurrency may not.
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    const int count = CPU_COUNT(&allowed);
    if (count > 0) return count;
  }
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

}  // namespace kve
