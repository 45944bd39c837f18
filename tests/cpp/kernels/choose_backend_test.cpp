#include "kernels/choose_backend.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace kve {
namespace {

TEST(ChooseBackend, KnowsItsDevices) {
  const ChosenBackend cpu = choose_backend("cpu", 1, "scalar");
  EXPECT_EQ(cpu.backend->name(), "cpu-scalar");
  EXPECT_FALSE(cpu.is_device);
  EXPECT_EQ(cpu.note, "");
  try {
    choose_backend("gpu", 1, "");
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "device: expected cpu, cuda or auto, found 'gpu'");
  }
}

TEST(ChooseBackend, LimitsOnlyAGpusMemory) {
  for (const char* device :
       {"cuda:", "cuda:cache", "cuda:cache=", "cuda:cache=0", "cuda:cache=much", "auto:cache=-1GiB",
        "cuda:pages=1GiB", "cpu:cache=1GiB"}) {
    try {
      choose_backend(device, 1, "");
      FAIL() << "accepted " << device;
    } catch (const ConfigError& error) {
      EXPECT_EQ(std::string(error.what()),
                "device: expected a limit only of a GPU's memory, like cuda:cache=8GiB, found '" +
                    std::string(device) + "'");
    }
  }
  EXPECT_NE(choose_backend("auto:cache=1.5 GiB", 1, "scalar").backend, nullptr);
}

// Where there is a GPU and a build for it, it is used; else both say what is missing.
TEST(ChooseBackend, SaysWhyThereIsNoGpu) {
  const ChosenBackend any = choose_backend("auto", 1, "scalar");
  if (any.is_device) {
    EXPECT_EQ(any.note, "");
    EXPECT_TRUE(choose_backend("cuda", 1, "scalar").is_device);
    return;
  }
  EXPECT_EQ(any.backend->name(), "cpu-scalar");
  EXPECT_NE(any.note.find("the CPU computes"), std::string::npos);
  EXPECT_NE(any.note.find("expected"), std::string::npos);
  EXPECT_THROW(choose_backend("cuda", 1, ""), DeviceError);
}

}  // namespace
}  // namespace kve
