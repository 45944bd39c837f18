// One function per architecture: metadata -> ModelSpec. Listed in models/registry.cpp.
#pragma once

#include "models/spec.h"

namespace kve {

ModelSpec describe_bloom(const GgufFile& file);
ModelSpec describe_gemma3(const GgufFile& file);
ModelSpec describe_gpt2(const GgufFile& file);
ModelSpec describe_llama(const GgufFile& file);
ModelSpec describe_mpt(const GgufFile& file);

}  // namespace kve
