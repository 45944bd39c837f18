#include "base/cpu_features.h"

#include <cstdint>
#include <fstream>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace kve {
namespace {

#if defined(__x86_64__) || defined(__i386__)
struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};
Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// The register states that the operating system saves (XCR0).
uint64_t saved_states() {
  uint32_t low = 0;
  uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool is_intel() {
  constexpr uint32_t kGenu = 0x756e6547, kIneI = 0x49656e69, kNtel = 0x6c65746e;
  const Registers vendor = cpuid(0, 0);
  return vendor.ebx == kGenu && vendor.edx == kIneI && vendor.ecx == kNtel;
}

// Tile registers are large, so Linux saves them only for processes that have asked for it; it
// refuses where a thread has too small a stack for signals.
bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// All of the given bits.
bool all(uint32_t flags, uint32_t wanted) { return (flags & wanted) == wanted; }

CpuFeatures detect() {
  CpuFeatures features;
  const Registers basic = cpuid(1, 0);
  constexpr uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
  if (!all(basic.ecx, kFma | kOsxsave | kAvx | kF16c)) return features;
  constexpr uint64_t kYmmStates = 0x6;   // XMM and YMM
  constexpr uint64_t kZmmStates = 0xe6;  // also mask registers and both halves of ZMM
  const uint64_t states = saved_states();
  if ((states & kYmmStates) != kYmmStates) return features;
  const Registers extended = cpuid(7, 0);
  constexpr uint32_t kBmi1 = 1u << 3, kAvx2 = 1u << 5, kBmi2 = 1u << 8;
  features.avx2 = all(extended.ebx, kBmi1 | kAvx2 | kBmi2);
  constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kCd = 1u << 28, kBw = 1u << 30, kVl = 1u << 31;
  constexpr uint32_t kVbmi = 1u << 1, kVnni = 1u << 11;
  features.avx512 = features.avx2 && (states & kZmmStates) == kZmmStates &&
                    all(extended.ebx, kF | kDq | kCd | kBw | kVl) &&
                    all(extended.ecx, kVbmi | kVnni);
  // extended.eax is the last subleaf.
  constexpr uint32_t kBf16 = 1u << 5;
  features.avx512_bf16 = features.avx512 && extended.eax >= 1 && all(cpuid(7, 1).eax, kBf16);
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr uint64_t kTileStates = 0x60000;
  features.amx = features.avx512 && (states & kTileStates) == kTileStates &&
                 all(extended.edx, kAmxBf16 | kAmxTile) && may_use_tiles();
  // Intel's run at a quarter of the rate (measured on Emerald Rapids), AMD's at the same.
  features.slow_bf16 = features.avx512_bf16 && is_intel();
  return features;
}
#elif defined(__aarch64__)
bool has_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP, which old headers lack
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found == 1;
#else
  return false;
#endif
}

CpuFeatures detect() {
  CpuFeatures features;
  features.neon = true;
  features.dotprod = has_dotprod();
  return features;
}
#else
CpuFeatures detect() { return {}; }
#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

size_t last_level_cache_bytes() {
  // sysconf() adds up the caches of all sockets on some machines; the system's table does not.
  static const size_t found = [] {
    constexpr size_t kGuess = 8 << 20;
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
    size_t kilobytes = 0;
    return file >> kilobytes && kilobytes > 0 ? kilobytes << 10 : kGuess;
  }();
  return found;
}

}  // namespace kve
