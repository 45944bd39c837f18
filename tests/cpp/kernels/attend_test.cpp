#include "kernels/attend_testing.h"

namespace kve {
namespace {

using test::Attend;
using test::available_isas;
using test::Case;
using test::Problem;

TEST_P(Attend, HeadSizesAndGroupings) {
  for (const int dim : {1, 16, 32, 40, 64, 72, 80, 96, 128, 256, 576}) {
    for (const int kv_heads : {1, 2, 6}) {
      for (const int queries : {1, 5, 20}) {
        Case c;
        c.n_heads = 6;
        c.n_kv_heads = kv_heads;
        c.key_dim = c.value_dim = dim;
        c.n_rows = 100;
        c.n_queries = queries;
        check(c, std::to_string(dim) + " x " + std::to_string(kv_heads) + ", " +
                     std::to_string(queries) + " queries");
      }
    }
  }
  Case unequal;
  unequal.key_dim = 192;
  unequal.value_dim = 128;
  for (const int queries : {1, 30}) {
    unequal.n_queries = queries;
    check(unequal, "unequal key and value sizes");
  }
  for (int group = 1; group <= 9; ++group) {
    for (int queries = 1; queries <= 10; ++queries) {
      Case c;
      c.n_heads = 2 * group;
      c.key_dim = 72;
      c.value_dim = 40;
      c.n_queries = queries;
      check(c, std::to_string(group) + " heads on one, " + std::to_string(queries) + " queries");
    }
  }
  Case many;  // more query heads to one kv head than a chunk takes
  many.n_heads = 400;
  many.n_kv_heads = 1;
  many.key_dim = many.value_dim = 16;
  for (const int queries : {1, 9}) {
    many.n_queries = queries;
    check(many, "400 heads on one");
  }
}

std::string name_of(const CodecSpec& spec) {
  return format_name(page_format(spec, kPageTokens, false)) + " group " +
         std::to_string(spec.group) + (spec.per == Per::channel ? " of a channel" : "");
}

// Every codec on each side, beside several others.
TEST_P(Attend, EveryCodecOnBothSides) {
  const std::vector<CodecSpec> codecs = test::test_codecs();
  for (size_t i = 0; i < codecs.size(); ++i) {
    for (const size_t shift : {0, 1, 17}) {
      for (const int queries : {1, 33}) {
        Case c;
        c.k_codec = codecs[i];
        c.v_codec = codecs[(i + shift) % codecs.size()];
        c.n_rows = 230;
        c.n_queries = queries;
        c.k_tail = 3;
        c.v_tail = 70;
        c.sinks = static_cast<int>(i % 3);
        check(c, name_of(c.k_codec) + " and " + name_of(c.v_codec));
      }
    }
  }
}

// At head sizes that leave strips of codes partly empty, too.
TEST_P(Attend, GroupSizes) {
  for (const Coding coding : {Coding::asym, Coding::sym, Coding::lloyd, Coding::nf4}) {
    for (const int group : {8, 16, 32, 64, 128, kWholeHead}) {
      for (const int dim : {40, 80, 96, 128}) {
        if (group > 0 && dim % group != 0) continue;
        Case c;
        c.key_dim = c.value_dim = dim;
        c.k_codec.id = CodecId::coded;
        c.k_codec.coding = {coding, 4, coding == Coding::lloyd ? Fit::norm : Fit::range};
        c.k_codec.group = group;
        c.v_codec = c.k_codec;
        check(c, name_of(c.k_codec) + ", " + std::to_string(dim));
      }
    }
  }
}

TEST_P(Attend, SinksPagesAndTails) {
  for (const int rows : {1, 2, 63, 64, 65, 128, 256, 257, 300, 600, 1100}) {
    for (const int tail : {0, 1, 64, 2000}) {
      for (const int sinks : {0, 4, 63}) {
        Case c;
        c.n_heads = 2;
        c.n_kv_heads = 1;
        c.key_dim = c.value_dim = 32;
        c.n_rows = rows;
        c.k_tail = std::min(tail, rows);
        c.v_tail = std::min(tail / 2, rows);
        c.sinks = sinks;
        for (const int queries : {1, 3, 8, 9, 70}) {
          c.n_queries = std::min(queries, rows);
          check(c, std::to_string(rows) + " rows, tail " + std::to_string(tail) + ", " +
                       std::to_string(sinks) + " sinks, " + std::to_string(c.n_queries) +
                       " queries");
        }
      }
    }
  }
}

TEST_P(Attend, WindowSoftcapAlibi) {
  for (const int window : {0, 1, 30, 64, 100, 1000}) {
    for (const float softcap : {0.0f, 1.5f}) {
      for (const bool alibi : {false, true}) {
        for (const int queries : {1, 7, 20}) {
          Case c;
          c.key_dim = c.value_dim = 16;
          c.n_rows = 700;
          c.n_queries = queries;
          c.window = window;
          c.softcap = softcap;
          c.alibi = alibi;
          c.first_pos = 13;
          check(c, "window " + std::to_string(window) + ", softcap " + std::to_string(softcap) +
                       (alibi ? ", alibi" : "") + ", " + std::to_string(queries) + " queries");
        }
      }
    }
  }
}

TEST_P(Attend, LargeScoresDoNotOverflow) {
  Case c;
  c.n_rows = 500;
  for (const int queries : {1, 20}) {
    c.n_queries = queries;
    Problem problem(c);
    for (float& value : problem.q) value *= 1000;
    // Reference: the largest score wins outright unless another is close, so only finiteness and
    // the range of the values are known.
    for (const float y : problem.run(*backend_)) {
      EXPECT_TRUE(std::isfinite(y));
      EXPECT_LT(std::abs(y), 4.0f);
    }
  }
}

TEST_P(Attend, TasksOfDifferentLength) {
  Case first;
  Case second;
  first.n_rows = 90;
  second.n_rows = 900;
  second.n_queries = 20;
  const Problem a(first);
  const Problem b(second);
  std::vector<float> out_a(static_cast<size_t>(4 * 64));
  std::vector<float> out_b(static_cast<size_t>(20 * 4 * 64));
  const AttendTask tasks[] = {
      {ConstMat(a.q.data(), 1, 256), a.heads, a.first_query(), Mat(out_a.data(), 1, 256)},
      {ConstMat(b.q.data(), 20, 256), b.heads, b.first_query(), Mat(out_b.data(), 20, 256)}};
  backend_->attend(a.params, tasks);
  EXPECT_TRUE(test::same_bits(out_a, a.run(*backend_)));
  EXPECT_TRUE(test::same_bits(out_b, b.run(*backend_)));
}

TEST_P(Attend, DoesNotDependOnThreads) {
  for (const int queries : {1, 8, 100}) {
    Case c;
    c.n_rows = 1500;
    c.n_queries = queries;
    const Problem problem(c);
    const std::vector<float> one = problem.run(*make_cpu_backend(1, GetParam()));
    for (const int threads : {2, 3, 8}) {
      EXPECT_TRUE(test::same_bits(one, problem.run(*make_cpu_backend(threads, GetParam()))));
    }
  }
}

// few_rows.h: what a query gives does not depend on the other queries of a call. The last of
// several is compared with the same query alone; rows, parts and windows begin at every kind of
// position.
TEST_P(Attend, FewQueriesGiveTheSameBitsAsOne) {
  for (const int window : {0, 70, 300}) {
    for (const int first_pos : {0, 13, 64}) {
      for (const int rows : {9, 250, 256, 260, 513, 1100}) {
        Case c;
        c.n_heads = 6;
        c.key_dim = c.value_dim = 40;
        c.n_rows = rows;
        c.n_queries = 8;
        c.window = window;
        c.first_pos = first_pos;
        const Problem problem(c);
        const std::vector<float> together = problem.run(*backend_);
        const size_t width = static_cast<size_t>(c.n_heads * c.value_dim);
        for (int i = 0; i < c.n_queries; ++i) {
          std::vector<float> alone(width);
          const AttendTask task = {
              ConstMat(problem.q.data() + static_cast<size_t>(i) * width, 1, c.n_heads * 40),
              problem.heads, problem.first_query() + i, Mat(alone.data(), 1, c.n_heads * 40)};
          backend_->attend(problem.params, {&task, 1});
          const auto row = together.begin() + i * static_cast<int64_t>(width);
          EXPECT_TRUE(test::same_bits(alone, {row, row + static_cast<int64_t>(width)}))
              << rows << " rows from " << first_pos << ", window " << window << ", query " << i;
        }
      }
    }
  }
}

TEST_P(Attend, NotANumberReachesTheOutput) {
  for (const int queries : {1, 20}) {
    Case c;
    c.n_queries = queries;
    Problem problem(c);
    problem.q[5] = NAN;  // query 0, head 0
    const std::vector<float> out = problem.run(*backend_);
    for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i < 64) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, Attend, ::testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace kve
