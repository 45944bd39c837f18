// Models split into several files: name-00001-of-00003.gguf and so on, each of which says in its
// metadata which part it is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "gguf/metadata.h"

namespace kve::gguf {

inline constexpr std::string_view kSplitNumberKey = "split.no";
inline constexpr std::string_view kSplitCountKey = "split.count";
inline constexpr std::string_view kSplitTensorsKey = "split.tensors.count";

struct SplitPart {
  uint32_t number = 0;     // from 0
  uint32_t count = 1;      // 1: not split
  uint64_t n_tensors = 0;  // of all parts together; 0 if not split
};

// In every function, `name` is the file for messages. They throw FormatError.

// Which part a file says it is; number < count.
SplitPart split_part(const Metadata& metadata, const std::string& name);

// "-00001-of-00003.gguf" for number 0 of 3.
std::string split_suffix(uint32_t number, uint32_t count);

// The path of the first part without its suffix.
std::string split_prefix(const std::string& path, const SplitPart& first, const std::string& name);

// Throws unless `part` is the expected part of the model that `first` begins.
void check_belongs(const SplitPart& first, const Metadata& first_metadata, const SplitPart& part,
                   const Metadata& metadata, uint32_t expected_number, const std::string& name);

}  // namespace kve::gguf
