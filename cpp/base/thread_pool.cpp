#include "base/thread_pool.h"

#include <algorithm>
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

// Asks for the first lines of a stretch, to come into the second cache, and leaves the rest.
void ask_for_some(Stretch* stretch) {
  constexpr size_t kLine = 64;
  constexpr size_t kAtOnce = 8 * kLine;
  const size_t bytes = std::min(stretch->bytes, kAtOnce);
  // Numbers, not pointers: nobody says that there is memory.
  const auto at = reinterpret_cast<uintptr_t>(stretch->data);
  for (size_t i = 0; i < bytes; i += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(at + i), 0, 2);
  }
  *stretch = {reinterpret_cast<const std::byte*>(at + bytes), stretch->bytes - bytes};
}

// Spins, then yields, while `still` holds; false when it gave up waiting.
template <class Condition>
bool spin_while(int spins, Stretch ahead, const Condition& still) {
  for (int i = 0; i < spins; ++i) {
    if (!still()) return true;
    if (ahead.bytes > 0) {
      ask_for_some(&ahead);
    } else {
      pause_briefly();
    }
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
  ahead_ = std::make_unique<Ahead[]>(static_cast<size_t>(n_threads));
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

void ThreadPool::ask_ahead(int thread, Stretch ahead) {
  Ahead& own = ahead_[static_cast<size_t>(thread)];
  own.data.store(ahead.data, std::memory_order_relaxed);
  own.bytes.store(ahead.bytes, std::memory_order_relaxed);
}

template <class Condition>
bool ThreadPool::wait_while(int thread, const Condition& still) {
  const Ahead& own = ahead_[static_cast<size_t>(thread)];
  const Stretch ahead = {own.data.load(std::memory_order_relaxed),
                         own.bytes.load(std::memory_order_relaxed)};
  return spin_while(spins_, ahead, still);
}

void ThreadPool::run(int64_t n, Function function, const void* context) {
  const std::lock_guard lock(callers_);
  if (n == 1 || workers_.empty()) {
    for (int64_t i = 0; i < n; ++i) function(context, i, 0);
    return;
  }
  KVE_ASSERT(n < INT32_MAX);
  const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  open_job(generation, n, function, context);
  drain(generation, 0);
  const auto unfinished = [&] { return done_.load(std::memory_order_acquire) != n; };
  while (!wait_while(0, unfinished)) {
    const int32_t done = done_.load(std::memory_order_acquire);
    if (done != n) done_.wait(done);
  }
  if (failed_.load(std::memory_order_relaxed)) {
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
}

void ThreadPool::open_job(uint32_t generation, int64_t n, Function function, const void* context) {
  // No ticket of any generation can be drawn until everything else is in place: whoever reads the
  // new n_tasks_ (a release) also sees this, so that drawing from the former job fails.
  ticket_.store((uint64_t{generation} << 32) | UINT32_MAX);
  function_.store(function, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  n_tasks_.store(n, std::memory_order_release);
  done_.store(0, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  ticket_.store(uint64_t{generation} << 32, std::memory_order_release);
  generation_.store(generation, std::memory_order_release);
  generation_.notify_all();
}

void ThreadPool::drain(uint32_t generation, int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const Function function = function_.load(std::memory_order_acquire);
    const void* context = context_.load(std::memory_order_acquire);
    const int64_t n = n_tasks_.load(std::memory_order_acquire);
    const auto index = static_cast<int64_t>(ticket & UINT32_MAX);
    if (ticket >> 32 != generation || index >= n) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      continue;
    }
    run_task(index, function, context, thread);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == n) done_.notify_all();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::run_task(int64_t index, Function function, const void* context, int thread) {
  if (failed_.load(std::memory_order_relaxed)) return;
  try {
    function(context, index, thread);
  } catch (...) {
    // Only the first to set the flag writes; the caller reads after all tasks are counted.
    if (!failed_.exchange(true, std::memory_order_acq_rel)) failure_ = std::current_exception();
  }
}

void ThreadPool::worker_loop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const auto unchanged = [&] { return generation_.load(std::memory_order_acquire) == seen; };
    while (!wait_while(thread, unchanged)) generation_.wait(seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load()) return;
    drain(seen, thread);
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
