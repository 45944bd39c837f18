#include "kernels/cpu/dispatch.h"

#include <cstdlib>
#include <string>

#include "base/cpu_features.h"
#include "base/error.h"

namespace kve {

namespace scalar {
extern const Kernels kKernels;
}
#ifdef KVE_HAVE_AVX2
namespace avx2 {
extern const Kernels kKernels;
}
#endif
#ifdef KVE_HAVE_AVX512
namespace avx512 {
extern const Kernels kKernels;
}
#endif
#ifdef KVE_HAVE_AVX512_BF16
namespace avx512_bf16 {
extern const Kernels kKernels;
}
#endif
#ifdef KVE_HAVE_AMX
namespace amx {
extern const Kernels kKernels;
}
#endif
#ifdef KVE_HAVE_NEON
namespace neon {
extern const Kernels kKernels;
}
#endif
#ifdef KVE_HAVE_DOTPROD
namespace dotprod {
extern const Kernels kKernels;
}
#endif

namespace {

struct Choice {
  const Kernels* kernels;
  bool available;
  bool preferred = available;  // to those before
};

// Best last.
const Choice kChoices[] = {
    {&scalar::kKernels, true},
#ifdef KVE_HAVE_AVX2
    {&avx2::kKernels, cpu_features().avx2},
#endif
#ifdef KVE_HAVE_AVX512
    {&avx512::kKernels, cpu_features().avx512},
#endif
#ifdef KVE_HAVE_AVX512_BF16
    {&avx512_bf16::kKernels, cpu_features().avx512_bf16,
     cpu_features().avx512_bf16 && !cpu_features().slow_bf16},
#endif
#ifdef KVE_HAVE_AMX
    {&amx::kKernels, cpu_features().amx},
#endif
#ifdef KVE_HAVE_NEON
    {&neon::kKernels, cpu_features().neon},
#endif
#ifdef KVE_HAVE_DOTPROD
    {&dotprod::kKernels, cpu_features().dotprod},
#endif
};

std::string available_names() {
  std::string names;
  for (const Choice& choice : kChoices) {
    if (!choice.available) continue;
    if (!names.empty()) names += ", ";
    names += choice.kernels->name;
  }
  return names;
}

}  // namespace

const Kernels& find_kernels(std::string_view isa) {
  const Kernels* found = nullptr;
  for (const Choice& choice : kChoices) {
    const bool fits = isa.empty() ? choice.preferred : isa == choice.kernels->name;
    if (choice.available && fits) found = choice.kernels;
  }
  if (found == nullptr) {
    throw ConfigError(
        message("instruction set: expected one of ", available_names(), ", found '", isa, "'"));
  }
  return *found;
}

const Kernels& choose_kernels(std::string_view isa) {
  const char* forced = std::getenv("KVENGINE_ISA");
  return find_kernels(forced != nullptr && *forced != '\0' ? forced : isa);
}

}  // namespace kve
