#include "base/byte_size.h"

#include <gtest/gtest.h>

namespace kve {
namespace {

TEST(ByteSize, ReadsUnits) {
  EXPECT_EQ(parse_byte_size("300000"), 300000);
  EXPECT_EQ(parse_byte_size("64MiB"), 64 << 20);
  EXPECT_EQ(parse_byte_size("1.5 GiB"), 1536.0 * (1 << 20));
  EXPECT_EQ(parse_byte_size("10kB"), 10'000);
  EXPECT_EQ(parse_byte_size("0"), 0);
  EXPECT_EQ(parse_byte_size("99999999999999999999 GB"), kMostByteSize);
}

TEST(ByteSize, RefusesWhatIsNone) {
  for (const char* text : {"", " 1", "MiB", "-1", "1mib", "1 MiB ", "1,5GiB", "0x10", "inf"}) {
    EXPECT_LT(parse_byte_size(text), 0) << text;
  }
}

}  // namespace
}  // namespace kve
