#include "kernels/cuda/page_copies.h"

#include "kernels/cuda/warp.h"

namespace kve::cuda {
namespace {

constexpr int kCopyThreads = 128;
// A bus is full with few blocks; the others of the device are for what goes on beside.
constexpr int64_t kMostCopyBlocks = 64;
constexpr int kZeroThreads = 256;

struct CopyArgs {
  const PageCopy* copies;
  int64_t n;
};

// A block copies page after page.
__global__ void copy_pages_kernel(CopyArgs args) {
  for (int64_t i = blockIdx.x; i < args.n; i += gridDim.x) {
    const PageCopy& copy = args.copies[i];
    constexpr int64_t kWord = sizeof(Words4);
    const int64_t words = copy.bytes / kWord;
    const auto* from = reinterpret_cast<const unsigned char*>(copy.from);
    auto* to = reinterpret_cast<unsigned char*>(copy.to);
    for (int64_t w = threadIdx.x; w < words; w += kCopyThreads) {
      store_words4(to + w * kWord, load_words4(from + w * kWord));
    }
    for (int64_t b = words * kWord + threadIdx.x; b < copy.bytes; b += kCopyThreads) {
      to[b] = from[b];
    }
  }
}

struct ZeroArgs {
  std::byte* to;
  int64_t bytes;
};

__global__ void zero_bytes_kernel(ZeroArgs args) {
  const int64_t step = int64_t{gridDim.x} * kZeroThreads;
  for (int64_t b = int64_t{blockIdx.x} * kZeroThreads + threadIdx.x; b < args.bytes; b += step) {
    args.to[b] = std::byte{0};
  }
}

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(n < kMostCopyBlocks ? n : kMostCopyBlocks);
}

}  // namespace

void copy_pages(const PageCopy* copies, int64_t n, bool aside) {
  if (n == 0) return;
  launch("copy_pages", copy_pages_kernel, {blocks_for(n)}, kCopyThreads, 0, CopyArgs{copies, n},
         aside);
}

void zero_bytes(std::byte* to, size_t bytes) {
  const auto n = static_cast<int64_t>(bytes);
  if (n == 0) return;
  launch("zero_bytes", zero_bytes_kernel, {blocks_for((n + kZeroThreads - 1) / kZeroThreads)},
         kZeroThreads, 0, ZeroArgs{to, n});
}

}  // namespace kve::cuda
