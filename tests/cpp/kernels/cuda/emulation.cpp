#include "kernels/cuda/emulation.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace kve::cuda::emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

struct Barrier {
  unsigned alive = 0;
  unsigned arrived = 0;
  uint64_t generation = 0;
};

struct Warp {
  Barrier barrier;
  Shown shown[2][kWarp];  // of even and of odd exchanges
};

struct Fiber {
  ucontext_t context;
  std::vector<unsigned char> stack;
  GridSize index;
  uint64_t exchanges = 0;
  Barrier* waits_for = nullptr;
  uint64_t generation = 0;  // of what it waits for
  bool done = false;
  void* tsan = nullptr;
};

// The one block that runs; launches follow one another.
struct Block {
  ucontext_t scheduler;
  void* scheduler_tsan = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  std::vector<unsigned char> shared;
  unsigned current = 0;
  const std::function<void()>* kernel = nullptr;
  const char* name = "";
};

std::mutex launches;
Block block;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated kernel %s, block (%u, %u, %u): %s\n", block.name, blockIdx.x,
               blockIdx.y, blockIdx.z, what);
  std::abort();
}

// Leaves the running fiber; `ends`: for good.
void to_scheduler(bool ends) {
  Fiber& fiber = block.fibers[block.current];
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake, block.scheduler_stack,
                                 block.scheduler_stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(block.scheduler_tsan, 0);
#endif
  if (ends) {
    setcontext(&block.scheduler);
  } else {
    swapcontext(&fiber.context, &block.scheduler);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void to_fiber(unsigned i) {
  Fiber& fiber = block.fibers[i];
  block.current = i;
  threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.data(), fiber.stack.size());
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.tsan, 0);
#endif
  swapcontext(&block.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void begin() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
  (*block.kernel)();
  block.fibers[block.current].done = true;
  to_scheduler(true);
}

void wait(Barrier* barrier) {
  Fiber& fiber = block.fibers[block.current];
  if (++barrier->arrived == barrier->alive) {
    barrier->arrived = 0;
    ++barrier->generation;
    return;
  }
  fiber.waits_for = barrier;
  fiber.generation = barrier->generation;
  to_scheduler(false);
}

void prepare(Fiber* fiber, unsigned i) {
  fiber->index = {i, 0, 0};
  fiber->done = false;
  fiber->waits_for = nullptr;
  fiber->exchanges = 0;
  if (fiber->stack.empty()) fiber->stack.resize(kStackBytes);
#if defined(__SANITIZE_THREAD__)
  if (fiber->tsan == nullptr) fiber->tsan = __tsan_create_fiber(0);
#endif
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack.data();
  fiber->context.uc_stack.ss_size = fiber->stack.size();
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, begin, 0);
}

void run_block(unsigned threads, size_t shared_bytes) {
  block.warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  for (unsigned i = 0; i < threads; ++i) {
    prepare(&block.fibers[i], i);
    ++block.warps[i / kWarp].barrier.alive;
  }
  block.barrier = {threads, 0, 0};
  block.shared.assign(shared_bytes + 16, 0xff);
  unsigned left = threads;
  while (left > 0) {
    bool moved = false;
    for (unsigned n = 0; n < threads; ++n) {
      const unsigned i = reversed ? threads - 1 - n : n;
      Fiber& fiber = block.fibers[i];
      const bool waits =
          fiber.waits_for != nullptr && fiber.waits_for->generation == fiber.generation;
      if (fiber.done || waits) continue;
      fiber.waits_for = nullptr;
      moved = true;
      to_fiber(i);
      if (fiber.done) --left;
    }
    if (!moved) fail("threads wait for a barrier that others do not reach");
  }
}

}  // namespace

unsigned char* shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(block.shared.data());
  return block.shared.data() + (16 - address % 16) % 16;
}

void misaligned() { fail("a load is not aligned to its size"); }

void wait_for_block() { wait(&block.barrier); }

void wait_for_warp() { wait(&block.warps[block.current / kWarp].barrier); }

const Shown* exchange(const Shown& mine) {
  Fiber& fiber = block.fibers[block.current];
  Warp& warp = block.warps[block.current / kWarp];
  Shown* shown = warp.shown[fiber.exchanges++ % 2];
  shown[block.current % kWarp] = mine;
  wait(&warp.barrier);
  return shown;
}

void run(const char* name, GridSize grid, unsigned threads, size_t shared_bytes,
         const std::function<void()>& kernel) {
  const std::lock_guard lock(launches);
  block.name = name;
  block.kernel = &kernel;
  if (block.fibers.size() < threads) block.fibers.resize(threads);
  gridDim = grid;
  blockDim = {threads, 1, 1};
  // Devices have no more (CUDA C++ Programming Guide, technical specifications).
  if (threads % kWarp != 0 || threads == 0 || threads > 1024)
    fail("a block has 32 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    fail("a grid has at least one block and at most 65535 in y and z");
  }
  if (shared_bytes > 99 * 1024) fail("a block has at most 99 KiB of shared memory");
#if defined(__SANITIZE_THREAD__)
  block.scheduler_tsan = __tsan_get_current_fiber();
#endif
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(threads, shared_bytes);
    }
  }
}

}  // namespace kve::cuda::emulation
