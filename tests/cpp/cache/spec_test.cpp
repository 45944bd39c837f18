#include "cache/spec.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "base/error.h"
#include "base/random.h"
#include "cache/cache_testing.h"
#include "cache/kv_cache.h"
#include "cache/registry.h"
#include "cache/select/selector_stage.h"

namespace kve {
namespace {

std::string canonical(std::string_view text) { return CacheSpec::parse(text).str(); }

// The message of the ConfigError that `text` must give.
std::string error_of(std::string_view text) {
  try {
    const CacheSpec spec = CacheSpec::parse(text);
    ADD_FAILURE() << "'" << text << "' was read as " << spec.str();
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return {};
}

testing::AssertionResult says(std::string_view text, std::initializer_list<const char*> parts) {
  const std::string error = error_of(text);
  for (const char* part : parts) {
    if (error.find(part) == std::string::npos) {
      return testing::AssertionFailure() << "\"" << error << "\" does not say " << part;
    }
  }
  return testing::AssertionSuccess();
}

TEST(CacheSpecParse, CanonicalForms) {
  EXPECT_EQ(canonical("f16"), "f16");
  EXPECT_EQ(canonical("int4"), "int4:group=32,tail=64");
  EXPECT_EQ(canonical("int4:tail=0"), "int4:group=32,tail=0");
  EXPECT_EQ(canonical("int4 : tail = 7 , group = 128"), "int4:group=128,tail=7");
  EXPECT_EQ(canonical("q8_0"), "q8_0");
  EXPECT_EQ(canonical("q8_0:tail=0"), "q8_0");
  EXPECT_EQ(canonical("q4_0:tail=64"), "q4_0:tail=64");
  EXPECT_EQ(canonical("  k=q8_0 +\tv = q4_0 "), "k=q8_0+v=q4_0");
  EXPECT_EQ(canonical("v=int4 + k=int4"), "int4:group=32,tail=64");
  EXPECT_EQ(canonical("k=int4"), "k=int4:group=32,tail=64+v=f16");
  EXPECT_EQ(canonical("v=bf16"), "k=f16+v=bf16");
  EXPECT_EQ(canonical("int4:tail=1000000"), "int4:group=32,tail=1000000");
  EXPECT_EQ(canonical("int4:tail=007"), "int4:group=32,tail=7");
  EXPECT_EQ(canonical("flexgen4"), "int4:group=32,tail=0");
  EXPECT_EQ(canonical("k=flexgen4+v=f32"), "k=int4:group=32,tail=0+v=f32");
}

TEST(CacheSpecParse, FieldsOfTheSides) {
  const CacheSpec spec = CacheSpec::parse("k=int8:group=16 + v=q4_0:tail=5");
  EXPECT_EQ(spec.k.codec.id, CodecId::coded);
  EXPECT_EQ(spec.k.codec.coding.coding, Coding::asym);
  EXPECT_EQ(spec.k.codec.coding.bits, 8);
  EXPECT_EQ(spec.k.codec.group, 16);
  EXPECT_EQ(spec.k.tail, 64);
  EXPECT_EQ(spec.v.codec.coding.coding, Coding::q4_0);
  EXPECT_EQ(spec.v.codec.group, 32);
  EXPECT_EQ(spec.v.tail, 5);
  EXPECT_FALSE(spec.v.eager());
  EXPECT_TRUE(CacheSpec::parse("q4_0").k.eager());
  EXPECT_EQ(CacheSpec{}, CacheSpec::parse("f16"));
}

TEST(CacheSpecParse, EveryListedCacheRoundTrips) {
  const std::vector<CacheListing> listings = list_caches();
  EXPECT_EQ(listings.size(), cache_codecs().size() + cache_projectors().size() +
                                 cache_selectors().size() + cache_presets().size());
  std::set<std::string> names;
  for (const CacheListing& line : listings) {
    SCOPED_TRACE(line.name);
    EXPECT_TRUE(names.insert(line.name).second);
    const bool reads_file = line.kind == "preset" && !line.parameters.empty();
    const std::string file = reads_file ? ":basis=FILE" : line.name == "duo" ? ":gates=FILE" : "";
    EXPECT_EQ(canonical(line.name + file), line.spec);
    EXPECT_EQ(canonical(line.spec), line.spec);
    EXPECT_FALSE(line.description.empty());
    EXPECT_FALSE(line.paper.empty());
    EXPECT_GT(line.bits_per_value, 0);
  }
  EXPECT_EQ(listings[1].name, "f16");
  EXPECT_EQ(listings[1].bits_per_value, 16);
}

TEST(CacheSpecParse, UnknownNamesAreNamedWithPositionAndAlternatives) {
  EXPECT_TRUE(says("kivi9x", {"character 1:", "'kivi9x'", "known: f32, f16, bf16, q8_0"}));
  EXPECT_TRUE(says("k=f16 + v=int9:tail=3", {"character 11:", "'int9'", "did you mean int8?"}));
  EXPECT_TRUE(says("F16", {"did you mean f16?"}));
  EXPECT_TRUE(says("q8", {"did you mean q8_0?"}));
  EXPECT_TRUE(says("int-4", {"did you mean int4?"}));
  EXPECT_EQ(error_of("speculative:keep=0.25").find("did you mean"), std::string::npos);
  EXPECT_TRUE(says("f16\n", {"'f16\\n'"}));
  EXPECT_TRUE(says(std::string("f\0", 2), {"f\\x00"}));
}

TEST(CacheSpecParse, MalformedTextIsLocated) {
  EXPECT_TRUE(says("", {"character 1:", "the name of a cache", "the end"}));
  EXPECT_TRUE(says("   ", {"character 4:", "the end"}));
  EXPECT_TRUE(says("f16+", {"character 5:", "the end"}));
  EXPECT_TRUE(says("+f16", {"character 1:", "'+'"}));
  EXPECT_TRUE(says("f16 f16", {"character 5:", "expected '+' or the end", "'f'"}));
  EXPECT_TRUE(says("k=", {"character 3:", "the end"}));
  EXPECT_TRUE(says("q=f16", {"character 1:", "k= or v=", "'q'"}));
  EXPECT_TRUE(says("k=v=f16", {"character 3:", "unknown name 'v'"}));
  EXPECT_TRUE(says("int4:", {"character 6:", "name of a parameter"}));
  EXPECT_TRUE(says("int4:tail", {"character 10:", "'=' after 'tail'"}));
  EXPECT_TRUE(says("int4:tail=", {"character 11:", "a value"}));
  EXPECT_TRUE(says("int4:tail=3,", {"character 13:"}));
  EXPECT_TRUE(says("int4:tail=3:group=8", {"character 12:"}));
}

TEST(CacheSpecParse, ValuesOutOfRange) {
  EXPECT_TRUE(says("int4:group=24", {"character 12:", "8, 16, 32, 64, 128, head or row", "'24'"}));
  EXPECT_TRUE(says("int4:group=032", {"'032'"}));
  for (const char* tail :
       {"-1", "1000001", "99999999999999999999", "3x", "0x10", "1e3", "3.5", "\xff"}) {
    EXPECT_TRUE(says(std::string("int4:tail=") + tail, {"character 11:", "from 0 to 1000000"}))
        << tail;
  }
  for (const char* share : {"1", "%", "-1%", "0.5%", "11%", "1%%", "999999999999%"}) {
    EXPECT_TRUE(says(std::string("int4:outliers=") + share, {"character 15:", "outliers:"}))
        << share;
  }
  EXPECT_TRUE(says("int4:tail=+5", {"character 11:", "expected a value, found '+'"}));
}

TEST(CacheSpecParse, ParametersThatDoNotBelong) {
  EXPECT_TRUE(says("int4:tale=3", {"character 6:", "'tale'", "known: group, per, fit, scale"}));
  EXPECT_TRUE(says("q8_0:group=32", {"q8_0 has no parameter 'group'", "known: tail, seal"}));
  EXPECT_TRUE(says("f32:tail=64", {"f32 has no parameter 'tail'", "none"}));
  EXPECT_TRUE(says("int4:tail=3,tail=3", {"character 13:", "'tail' is given twice"}));
  EXPECT_TRUE(says("flexgen4:tail=3", {"flexgen4 has no parameters", "int4:group=32,tail=0"}));
}

TEST(CacheSpecParse, SecondChoicesForASide) {
  EXPECT_TRUE(says("f16+int4", {"character 5:", "second choice for the keys"}));
  EXPECT_TRUE(says("k=f16+k=f16", {"character 9:", "keys"}));
  EXPECT_TRUE(says("v=f16+int4", {"values"}));
  EXPECT_TRUE(says("int4+v=f16", {"values"}));
}

TEST(CacheSpecParse, LongTextIsRefusedAndNotRepeated) {
  const std::string longest = "f16" + std::string(kMaxSpecLength - 3, ' ');
  EXPECT_EQ(canonical(longest), "f16");
  EXPECT_TRUE(says(longest + " ", {"at most 65536", "found 65537"}));
  EXPECT_LT(error_of(std::string(100000, 'x')).size(), 200u);
  EXPECT_LT(error_of(std::string(4000, 'x')).size(), 800u);
}

TEST(CacheSpecParse, CombinationsThatDoNotGoTogether) {
  EXPECT_TRUE(
      says("int4:per=channel,group=head", {"keys: int4 with per=channel needs a group of"}));
  EXPECT_TRUE(says("k=f16+v=int4:per=channel,group=128", {"values:", "8, 16, 32 or 64 tokens"}));
  EXPECT_TRUE(says("int4:per=channel,group=32,channels=centred",
                   {"int4 with per=channel has no channels=centred"}));
  EXPECT_TRUE(says("int2:per=channel,group=32,tail=40,seal=window",
                   {"seal=window needs a tail of 32 tokens or a multiple, found 40"}));
  EXPECT_TRUE(says("int2:tail=0,seal=window", {"a tail of 1 tokens", "found 0"}));
  EXPECT_TRUE(says("mpo+int4:seal=window", {"seal=window does not go with mpo"}));
  EXPECT_TRUE(says("lm4:fit=range", {"character 9:", "lm4 has no fit 'range'", "norm, energy"}));
  EXPECT_TRUE(says("sym4:fit=search", {"sym4 has no fit 'search'; known: range"}));
  EXPECT_TRUE(says("k=int4:sinks=3+v=int4:sinks=4", {"sinks differs", "both sides share it"}));
  EXPECT_TRUE(says("k=kivi2+v=int4:prefill=coded", {"prefill differs"}));
  EXPECT_TRUE(says("int4:sinks=64", {"sinks: expected a whole number from 0 to 63"}));
  EXPECT_TRUE(says("q8_0:outliers=1%", {"q8_0 has no parameter 'outliers'"}));
}

TEST(CacheSpecParse, Outliers) {
  EXPECT_EQ(canonical("int4:outliers=1%"), "int4:group=32,outliers=1%,tail=64");
  EXPECT_EQ(canonical("int4:outliers=0%"), "int4:group=32,tail=64");
  // The nearest number of a group, but one at least; a binary16 number and its place for each.
  const auto bits = [](const char* text) {
    return bits_per_value(CacheSpec::parse(text).k.codec, 64, 64, false);
  };
  EXPECT_EQ(bits("int4:group=64,outliers=1%"), 4.5 + 24.0 / 64);
  EXPECT_EQ(bits("int4:group=64,outliers=2%"), 4.5 + 24.0 / 64);
  EXPECT_EQ(bits("int4:group=64,outliers=10%"), 4.5 + 6 * 24.0 / 64);
  EXPECT_EQ(bits("int4:group=8,per=channel,outliers=3%"), 8 + 24.0 / 8);
  const std::string error =
      message_of([] { KvCache(CacheSpec::parse("int4:group=head,outliers=1%"), {{1, 2, 2, 0}}); });
  EXPECT_TRUE(contains(error, "1 outliers are too many for groups of 2")) << error;
}

TEST(CacheSpecParse, ParametersOfProjectors) {
  EXPECT_EQ(canonical("mpo+int4"), "mpo:block=16,segment=1024+int4:group=32,tail=64");
  EXPECT_EQ(canonical("k=klt:fit=64"), "k=klt:fit=64,anchor=64+k=f16+v=f16");
  EXPECT_EQ(canonical("rotation:seed=2147483647"), "rotation:seed=2147483647+f16");
  EXPECT_TRUE(says("hadamard:seed=1", {"hadamard has no parameter 'seed'", "it has none"}));
  EXPECT_TRUE(says("klt:segment=64", {"klt has no parameter 'segment'", "known: fit=512"}));
  EXPECT_TRUE(says("mpo:segment=100", {"character 13:", "a multiple of 64"}));
  EXPECT_TRUE(says("mpo:block=1", {"from 2 to 256"}));
  EXPECT_TRUE(says("klt:anchor=32", {"anchor: expected 0, 1 or 64"}));
  EXPECT_TRUE(says("lowrank:rank=0", {"from 1 to 65536"}));
  EXPECT_TRUE(says("hadamard+rotation+int4", {"'rotation' is a second choice for the keys"}));
}

// Specs that a program makes are checked as those that are parsed.
TEST(CacheSpecError, NamesWhatIsWrongInFields) {
  const auto error = [](auto&& change) {
    CacheSpec spec = CacheSpec::parse("hadamard+int4:per=channel,group=32");
    EXPECT_EQ(spec.error(), "");
    change(spec);
    const std::string found = spec.error();
    EXPECT_THROW(KvCache(spec, {{1, 64, 64, 0}}), ConfigError);
    return found;
  };
  EXPECT_EQ(error([](CacheSpec& s) { s.v.tail = -1; }),
            "values: tail: expected 0 to 1000000, found -1");
  EXPECT_EQ(error([](CacheSpec& s) { s.k.codec.group = 24; }),
            "keys: int4 has no group of 24 values");
  EXPECT_EQ(error([](CacheSpec& s) { s.k.codec.coding.bits = 9; }),
            "keys: such a codec has no name");
  EXPECT_EQ(error([](CacheSpec& s) { s.k.codec.coding.fit = Fit::norm; }),
            "keys: int4 has no such fit");
  EXPECT_EQ(error([](CacheSpec& s) { s.k.codec.outliers = 11; }),
            "keys: outliers: expected 0% to 10%, found 11%");
  EXPECT_EQ(error([](CacheSpec& s) { s.sinks = 64; }), "sinks: expected 0 to 63, found 64");
  EXPECT_EQ(error([](CacheSpec& s) { s.k.projector.fit = 64; }),
            "keys: a parameter of the projector is out of its range");
  EXPECT_EQ(error([](CacheSpec& s) {
              s.k.codec = CacheSpec::parse("f16").k.codec;
              s.k.tail = 64;
            }),
            "keys: floats have no tail and no rule of sealing");
  EXPECT_EQ(error([](CacheSpec& s) {
              s.v.codec = CacheSpec::parse("q8_0").k.codec;
              s.v.codec.group = 64;
            }),
            "values: q8_0 has no parameters of its coding");
}

// Random strings over the parser's alphabet and random edits of good specs: either a spec that
// round-trips, or a ConfigError of one line without control characters.
TEST(CacheSpecParse, RandomTextNeverBreaksTheParser) {
  const std::string pieces[] = {
      "k=",          "v=",     "f16",      "int4",         "q8_0",       ":",
      "tail",        "=",      "group",    "32",           ",",          "+",
      " ",           "64",     "-",        "\x80",         "9",          "int",
      "flexgen4",    "\n",     "hadamard", "mpo:segment=", "klt",        "per=channel",
      "seal=window", "sinks=", "kivi2",    "lm2",          "scale=log8", "group=head"};
  Random random(11);
  const auto pick = [&](size_t n) { return static_cast<size_t>(random.bits() % n); };
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    if (i % 2 == 0) {
      for (size_t n = pick(9); n > 0; --n) text += pieces[pick(std::size(pieces))];
    } else {
      text = "k=int4:group=32,tail=64+v=q8_0:tail=3";
      for (size_t n = 1 + pick(3); n > 0 && !text.empty(); --n) {
        const size_t at = pick(text.size());
        if (pick(2) == 0) {
          text.erase(at, 1);
        } else {
          text[at] = static_cast<char>(pick(256));
        }
      }
    }
    try {
      const CacheSpec spec = CacheSpec::parse(text);
      ASSERT_EQ(CacheSpec::parse(spec.str()), spec) << text;
      ++accepted;
    } catch (const ConfigError& error) {
      for (const char c : std::string_view(error.what())) {
        ASSERT_TRUE(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f) << text;
      }
    }
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace kve
