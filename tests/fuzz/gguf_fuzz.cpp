// libFuzzer: whatever the bytes, a GGUF file opens or is refused with a kve::Error, and what opens
// can be read and written again. Good seeds: tests/fixtures/gguf and small real models.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "base/error.h"
#include "gguf/gguf_file.h"
#include "gguf/gguf_writer.h"
#include "gguf/read_everything.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::shared_ptr<const kve::GgufFile> file;
  try {
    file = kve::GgufFile::from_bytes(std::as_bytes(std::span(data, size)));
  } catch (const kve::Error&) {
    return 0;
  }
  const uint64_t sum = kve::test::read_everything(*file);
  const auto copy = kve::GgufFile::from_bytes(kve::GgufWriter::copy_of(file).to_bytes());
  if (kve::test::read_everything(*copy) != sum) std::abort();
  return 0;
}
