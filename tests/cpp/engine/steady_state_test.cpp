// A decode step allocates nothing that is not counted: pages come from the cache's own allocator.
#include <gtest/gtest.h>

#include "base/allocation_watch.h"
#include "engine/tiny_model.h"

namespace kve::test {
namespace {

TEST(SteadyState, ADecodeStepAllocatesNothing) {
  const TemporaryFolder folder;
  for (const char* cache : {"f16", "q8_0", "int4:group=32,tail=64"}) {
    const auto model = load_tiny(folder, {.type = WeightType::q8_0});
    SessionOptions options;
    options.cache = CacheSpec::parse(cache);
    Session session = model->session(options);
    session.forward(random_tokens(200, 1));
    const Token token = 5;
    for (int i = 0; i < 10; ++i) session.forward({&token, 1});  // scratch memory has grown
    const int64_t pages_before = session.cache().memory().allocations();
    size_t allocations = 0;
    for (int i = 0; i < 40; ++i) {
      const AllocationWatch watch;
      session.forward({&token, 1});
      allocations += watch.seen().count;
    }
    const int64_t pages = session.cache().memory().allocations() - pages_before;
    // The counted allocator itself goes through operator new; nothing else may.
    EXPECT_LE(allocations, static_cast<size_t>(pages)) << cache;
  }
}

}  // namespace
}  // namespace kve::test
