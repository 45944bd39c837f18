#include "gguf/split.h"

#include <cstdio>

#include "base/error.h"
#include "base/printable.h"

namespace kve::gguf {

SplitPart split_part(const Metadata& metadata, const std::string& name) {
  SplitPart part;
  try {
    const auto count = metadata.get_or<uint16_t>(kSplitCountKey, 0);
    if (count <= 1) return part;  // llama.cpp writes 0 into models that were merged again
    part.count = count;
    part.number = metadata.get<uint16_t>(kSplitNumberKey);
    part.n_tensors = static_cast<uint64_t>(metadata.get<uint32_t>(kSplitTensorsKey));
  } catch (const FormatError& error) {
    throw FormatError(message(name, ": ", error.what()));
  }
  if (part.number >= part.count) {
    throw FormatError(message(name, ": metadata ", quoted(kSplitNumberKey), ": expected less than ",
                              part.count, ", found ", part.number));
  }
  return part;
}

std::string split_suffix(uint32_t number, uint32_t count) {
  char text[40];
  std::snprintf(text, sizeof(text), "-%05u-of-%05u.gguf", number + 1, count);
  return text;
}

std::string split_prefix(const std::string& path, const SplitPart& first, const std::string& name) {
  const std::string suffix = split_suffix(first.number, first.count);
  if (!path.ends_with(suffix)) {
    throw FormatError(message(name, ": part ", first.number + 1, " of a split model: expected a ",
                              "name that ends in ", suffix, ", by which the others are found"));
  }
  return path.substr(0, path.size() - suffix.size());
}

void check_belongs(const SplitPart& first, const Metadata& first_metadata, const SplitPart& part,
                   const Metadata& metadata, uint32_t expected_number, const std::string& name) {
  if (part.count != first.count || part.number != expected_number) {
    throw FormatError(message(name, ": expected part ", expected_number + 1, " of ", first.count,
                              " of a split model, found part ", part.number + 1, " of ",
                              part.count));
  }
  if (part.n_tensors != first.n_tensors) {
    throw FormatError(message(name, ": expected a part of a model of ", first.n_tensors,
                              " tensors, found one of ", part.n_tensors));
  }
  // Writers usually leave everything but the split's own keys out of later parts.
  constexpr std::string_view kArchitecture = "general.architecture";
  const MetaValue* expected = first_metadata.find(kArchitecture);
  const MetaValue* found = metadata.find(kArchitecture);
  if (expected && found && expected->as_string() != found->as_string()) {
    throw FormatError(message(name, ": expected a part of a model of architecture ",
                              quoted(expected->as_string()), ", found ",
                              quoted(found->as_string())));
  }
}

}  // namespace kve::gguf
