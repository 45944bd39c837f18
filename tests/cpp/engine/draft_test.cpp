#include "engine/draft.h"

#include <gtest/gtest.h>

#include <random>

#include "engine/tiny_model.h"
#include "kernels/few_rows.h"

namespace kve::test {
namespace {

std::vector<Token> lookup(const std::vector<Token>& text, int n) {
  LookupDrafter drafter;
  drafter.read(text);
  std::vector<Token> out;
  drafter.guess(Sampler({}), n, &out);
  return out;
}

TEST(LookupDrafter, GoesOnAsTheSameTokensDid) {
  EXPECT_EQ(lookup({1, 2, 3, 4, 5, 9, 1, 2}, 3), (std::vector<Token>{3, 4, 5}));
  // The longest match, not the latest.
  EXPECT_EQ(lookup({7, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2}, 1), std::vector<Token>{30});
  // Of equally long ones the latest.
  EXPECT_EQ(lookup({7, 1, 2, 30, 7, 1, 2, 40, 7, 1, 2}, 1), std::vector<Token>{40});
  // Beyond the end it goes on with its own guesses.
  EXPECT_EQ(lookup({5, 6, 7, 5, 6}, 7), (std::vector<Token>{7, 5, 6, 7, 5, 6, 7}));
  EXPECT_EQ(lookup({4, 4, 4}, 3), (std::vector<Token>{4, 4, 4}));
}

TEST(LookupDrafter, GuessesNothingWithoutTwoTokensThatCameBefore) {
  EXPECT_TRUE(lookup({}, 4).empty());
  EXPECT_TRUE(lookup({1}, 4).empty());
  EXPECT_TRUE(lookup({1, 2}, 4).empty());
  EXPECT_TRUE(lookup({1, 2, 3, 4, 2}, 4).empty());
}

// The definition, by looking everywhere.
std::vector<Token> plain_lookup(const std::vector<Token>& text, int n) {
  const auto at = [&](int i) { return text[static_cast<size_t>(i)]; };
  const int last = static_cast<int>(text.size()) - 1;
  int longest = LookupDrafter::kLeastMatch - 1, found = -1;
  for (int position = last - 1; position >= 1; --position) {
    int length = 0;
    while (length < LookupDrafter::kMostMatch && length <= position &&
           at(position - length) == at(last - length)) {
      ++length;
    }
    if (length > longest) {
      longest = length;
      found = position;
    }
  }
  std::vector<Token> grown = text;
  for (int i = 0; found >= 0 && i < n; ++i) {
    grown.push_back(grown[static_cast<size_t>(found + 1 + i)]);
  }
  return {grown.begin() + last + 1, grown.end()};
}

TEST(LookupDrafter, EqualsTheDefinitionOnRandomTexts) {
  for (const int alphabet : {300, 5000}) {  // no pair comes more often than is looked at
    std::mt19937 random(3);
    LookupDrafter drafter;
    std::vector<Token> text;
    int guesses = 0;
    while (text.size() < 9000) {  // past the first sizes of the table
      std::vector<Token> more;
      const size_t size = text.size();
      if (size > 100 && random() % 3 == 0) {  // a quotation
        const size_t from = random() % (size - 40);
        more.assign(text.begin() + static_cast<ptrdiff_t>(from),
                    text.begin() + static_cast<ptrdiff_t>(from + 2 + random() % 38));
      } else {
        for (int i = 0; i < 20; ++i) {
          more.push_back(static_cast<Token>(random() % static_cast<unsigned>(alphabet)));
        }
      }
      drafter.read(more);
      text.insert(text.end(), more.begin(), more.end());
      std::vector<Token> out;
      drafter.guess(Sampler({}), 6, &out);
      ASSERT_EQ(out, plain_lookup(text, 6)) << text.size();
      guesses += !out.empty();
    }
    EXPECT_GT(guesses, 50);
  }
}

TEST(DraftLength, FollowsWhatIsAccepted) {
  DraftLength length(7);
  EXPECT_EQ(length.next(), 3);
  length.report(3, 3);
  EXPECT_EQ(length.next(), 6);
  length.report(6, 6);
  EXPECT_EQ(length.next(), 7);
  length.report(7, 2);
  EXPECT_EQ(length.next(), 3);
  length.report(3, 0);
  EXPECT_EQ(length.next(), 1);
  EXPECT_EQ(DraftLength(1).next(), 1);
}

// Where nothing can be guessed, the rows computed in vain stay a small part of all.
TEST(DraftLength, PausesWhereNothingIsAccepted) {
  DraftLength length(7);
  int wasted = 0;
  for (int step = 0; step < 1000; ++step) {
    const int n = length.next();
    wasted += n;
    if (n > 0) length.report(n, 0);
  }
  EXPECT_LE(wasted, 30);
  // One success ends the pauses.
  while (length.next() == 0) {
  }
  length.report(1, 1);
  EXPECT_GT(length.next(), 0);
}

TEST(ModelDrafter, DrawsAsTheModelWould) {
  const TemporaryFolder folder;
  const auto model = load_tiny(folder, {});
  const auto session = std::make_shared<Session>(model->session());
  ModelDrafter drafter(session, *model);
  SamplingOptions options;
  options.temperature = 1;
  options.seed = 4;
  Sampler sampler(options);
  const std::vector<Token> text = random_tokens(30, 1);
  drafter.read(text);
  drafter.prepare({});
  EXPECT_EQ(session->n_tokens(), 30);
  std::vector<Token> guesses;
  drafter.guess(sampler, 5, &guesses);
  ASSERT_FALSE(guesses.empty());
  Session other = model->session();
  other.forward(text);
  for (const Token guess : guesses) {
    EXPECT_EQ(sampler.sample(other.last_logits()->last()).token, guess);
    other.forward({&guess, 1});
  }
  // Another continuation than was guessed.
  const std::vector<Token> next = {guesses[0], guesses[0] + 1};
  drafter.read(next);
  guesses.clear();
  drafter.guess(sampler, 1, &guesses);
  EXPECT_EQ(session->n_tokens(), 32);
  EXPECT_EQ(session->tokens()[31], next[1]);
}

TEST(ModelDrafter, StopsWhereItsContextEnds) {
  const TemporaryFolder folder;
  const auto model = load_tiny(folder, {});
  SessionOptions options;
  options.n_ctx = 32;
  ModelDrafter drafter(std::make_shared<Session>(model->session(options)), *model);
  drafter.read(random_tokens(30, 1));
  SamplingOptions greedy;
  greedy.temperature = 0;
  greedy.logit_bias = {{2, -INFINITY}};  // no end
  const Sampler sampler(greedy);
  std::vector<Token> guesses;
  drafter.guess(sampler, 7, &guesses);
  EXPECT_EQ(guesses.size(), 3u);
  drafter.read(random_tokens(3, 2));
  guesses.clear();
  drafter.prepare({});
  drafter.guess(sampler, 7, &guesses);
  EXPECT_TRUE(guesses.empty());
}

}  // namespace
}  // namespace kve::test
