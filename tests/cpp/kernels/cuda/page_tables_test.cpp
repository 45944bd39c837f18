#include "kernels/cuda/page_tables.h"

#include "kernels/cuda/cuda_testing.h"

namespace kve::cuda {
namespace {

class CudaPageTables : public CudaTest {
 protected:
  // What kernels find is where the twins of the pages are.
  void check(const TwinMemory& twins, PageTables& tables, const std::vector<PageView>& pages) {
    tables.begin();
    std::vector<PagePlace> found(pages.size());
    device().download(found.data(), tables.find(pages, anchors_), found.size() * sizeof(found[0]));
    for (size_t i = 0; i < pages.size(); ++i) {
      EXPECT_EQ(found[i].data, twins.find(pages[i].data).at(pages[i].data)) << i;
      EXPECT_EQ(found[i].kind, pages[i].basis) << i;
      EXPECT_EQ(found[i].anchor, anchors_.of(i)) << i;
    }
  }
  PageAnchors anchors_;
};

TEST_P(CudaPageTables, FollowPagesThatComeGoAndChange) {
  TwinMemory twins(device());
  Staging staging(device(), twins, 0);
  PageTables tables(device(), twins, staging);
  constexpr size_t kBytes = 60'000;  // several blocks of the device
  std::vector<std::byte*> blocks;
  for (int i = 0; i < 120; ++i) blocks.push_back(twins.allocate(kBytes, 64));
  std::vector<PageView> pages;
  pages.reserve(blocks.size());
  for (std::byte* block : blocks) {
    pages.push_back({block, static_cast<int32_t>(kBytes), 64, 0});
    if (pages.size() % 7 == 1) check(twins, tables, pages);
  }
  check(twins, tables, pages);
  std::swap(pages[3].data, pages[50].data);
  check(twins, tables, pages);
  pages.erase(pages.begin(), pages.begin() + 20);
  check(twins, tables, pages);
  pages[4].basis = 3;
  check(twins, tables, pages);
  const float row[2] = {};
  anchors_.angles = {row, 4, kPageTokens};
  anchors_.first_position = 4 + 2 * kPageTokens;
  EXPECT_EQ(anchors_.of(5), 7);
  check(twins, tables, pages);
  // Rows between which others are gone.
  std::vector<int32_t> positions;
  for (int32_t n = 0; n < 120 * kPageTokens; ++n) positions.push_back(4 + 3 * n);
  anchors_.positions = positions.data();
  EXPECT_EQ(anchors_.of(5), 15);
  check(twins, tables, pages);
  pages.resize(5);
  check(twins, tables, pages);
  for (std::byte* block : blocks) twins.release(block, kBytes, 64);
  // Other memory at the same places of the host, as a rule.
  std::byte* block = twins.allocate(kBytes, 64);
  pages.assign(1, {block, static_cast<int32_t>(kBytes), 64, 0});
  check(twins, tables, pages);
  twins.release(block, kBytes, 64);
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaPageTables, KVE_CUDA_ORDERS);

}  // namespace
}  // namespace kve::cuda
