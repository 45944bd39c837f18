#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "cache/cache_testing.h"
#include "cache/select/selector_stage.h"
#include "cache/spec.h"

namespace kve {
namespace {

std::string canonical(std::string_view text) { return CacheSpec::parse(text).str(); }

std::string refusal(const std::string& text) {
  try {
    return "read as " + canonical(text);
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
}

TEST(SelectSpec, CanonicalForms) {
  EXPECT_EQ(canonical("snapkv"), "snapkv:keep=0.25+f16");
  EXPECT_EQ(canonical("snapkv:keep=0.25+hadamard+int4:tail=64"),
            "snapkv:keep=0.25+hadamard+int4:group=32,tail=64");
  EXPECT_EQ(canonical("int4 + snapkv : keep = 512 , window = 32"),
            "snapkv:keep=512,window=32+int4:group=32,tail=64");
  EXPECT_EQ(canonical("full+q8_0"), "q8_0");
  EXPECT_EQ(canonical("h2o:keep=0.5"), "h2o:keep=0.5+f16");
  EXPECT_EQ(canonical("h2o:keep=512,recent=64,interval=16"),
            "h2o:keep=512,recent=64,interval=16+f16");
  EXPECT_EQ(canonical("h2o_realdrop"), "h2o_realdrop:heavy=4+f16");
  EXPECT_EQ(canonical("h2o_realdrop:heavy=8,recent=100"), "h2o_realdrop:heavy=8,recent=100+f16");
  EXPECT_EQ(canonical("h2o_realdrop:recent=100,heavy=8"), "h2o_realdrop:heavy=8,recent=100+f16");
  EXPECT_EQ(canonical("streaming:keep=1"), "streaming:keep=1+f16");
  EXPECT_EQ(canonical("h2o_bench"), "h2o_bench:keep=0.5+f16");
  EXPECT_EQ(canonical("kvzip:plus=0"), "kvzip:keep=0.25+f16");
  EXPECT_EQ(canonical("kvzip:keep=0.5,plus=1,chunk=64"), "kvzip:keep=0.5,chunk=64,plus=1+f16");
  EXPECT_EQ(canonical("custom:window=8"), "custom:keep=0.25,window=8+f16");
  EXPECT_EQ(canonical("streaming:positions=reassigned,interval=16"),
            "streaming:keep=0.25,interval=16,positions=reassigned+f16");
  EXPECT_EQ(canonical("adakv"), "adakv:score=snapkv,keep=0.25+f16");
  EXPECT_EQ(canonical("adakv:keep=0.5,score=expected,epsilon=0.01,alpha=0.5"),
            "adakv:score=expected,keep=0.5,epsilon=0.01,alpha=0.5+f16");
  EXPECT_EQ(canonical("duo:gates=a/b.tsv,streaming=0.25,recent=64"),
            "duo:gates=a/b.tsv,recent=64,streaming=0.25+f16");
  EXPECT_EQ(canonical("random:seed=7,prompt=chunked"),
            "random:keep=0.25,seed=7,prompt=chunked+f16");
  EXPECT_EQ(canonical("infllm"), "infllm+f16");
  EXPECT_EQ(canonical("infllm:offload=file,topk=4,init=128"), "infllm:topk=4,offload=file+f16");
  EXPECT_EQ(canonical("infllm:offload=memory + int4"), "infllm+int4:group=32,tail=64");
  EXPECT_EQ(canonical("infllm:offload=a/b"), "infllm:offload=a/b+f16");
  // The example of the authors' benchmark: 7,500 tokens at a quarter.
  EXPECT_EQ(canonical("infllm:total=1875"), "infllm:init=39,local=1324,topk=4,resident=4+f16");
  EXPECT_EQ(canonical("infllm:topk=3,total=1875"),
            "infllm:init=39,local=1324,topk=3,resident=4+f16");
  EXPECT_EQ(canonical("infllm:total=300"), "infllm:init=6,local=512,topk=0,resident=0+f16");
  EXPECT_EQ(canonical("knorm:keep=0.1+best4"), "knorm:keep=0.1+" + canonical("best4"));
}

TEST(SelectSpec, EverySelectorRoundTrips) {
  for (const SelectorEntry& entry : cache_selectors()) {
    SCOPED_TRACE(entry.name);
    const std::string text = selector_text(entry.spec);
    const CacheSpec spec = CacheSpec::parse(text);
    EXPECT_EQ(CacheSpec::parse(spec.str()), spec);
    EXPECT_EQ(selector_text(spec.selector), text);
    if (entry.spec.kind == SelectorSpec::Kind::duo) continue;
    EXPECT_EQ(spec.selector, entry.spec);
    EXPECT_EQ(selector_error(entry.spec), "");
  }
}

TEST(SelectSpec, Refusals) {
  const char* kKeep =
      "keep: expected a share of the tokens above 0 and at most 1, or a number of "
      "tokens from 2 to 1000000, found '";
  for (const char* keep : {"0", "-1", "0.0", "1.5", "nan", "inf", "1000001", "half", "0.5x"}) {
    EXPECT_TRUE(contains(refusal(std::string("snapkv:keep=") + keep), kKeep + std::string(keep)))
        << refusal(std::string("snapkv:keep=") + keep);
  }
  EXPECT_TRUE(contains(refusal("h2o:keep=100,sinks=40,recent=64"),
                       "keep: expected at least the 40 sinks and 64 recent tokens that always "
                       "stay, found 100"));
  EXPECT_TRUE(contains(refusal("h2o_realdrop:heavy=0,recent=0"),
                       "heavy: expected at least one heavy or recent token that stays"));
  EXPECT_TRUE(contains(refusal("snapkv:keep=32"), "at least the 0 sinks and 64 recent"));
  EXPECT_TRUE(contains(refusal("snapkv:kernel=4"), "kernel: expected an odd number, found 4"));
  EXPECT_TRUE(contains(refusal("snapkv:window=0"), "window: expected a whole number from 1"));
  EXPECT_TRUE(contains(refusal("snapkv:seed=1"), "snapkv has no parameter 'seed'; known: keep"));
  EXPECT_TRUE(contains(refusal("full:keep=0.5"), "full has no parameter 'keep'; it has none"));
  EXPECT_TRUE(contains(refusal("adakv:score=tova"), "score: expected one of h2o, snapkv,"));
  EXPECT_TRUE(contains(refusal("adakv:score=knorm,window=4"), "has no parameter 'window'"));
  EXPECT_TRUE(contains(refusal("snapkv+h2o"), "'h2o' is a second selector"));
  EXPECT_TRUE(contains(refusal("k=snapkv"), "'snapkv' is for keys and values together"));
  EXPECT_TRUE(contains(refusal("snapkv:first=2"), "snapkv has no parameter 'first'"));
  EXPECT_TRUE(contains(refusal("h2o_bench:keep=100"), "expects a share of the tokens, found 100"));
  EXPECT_TRUE(contains(refusal("kvzip:plus=2"), "plus: expected a whole number from 0 to 1"));
  EXPECT_TRUE(contains(refusal("snapkv:plus=1"), "snapkv has no parameter 'plus'"));
  EXPECT_TRUE(contains(refusal("h2o:positions=reassigned"), "has no parameter 'positions'"));
  EXPECT_TRUE(contains(refusal("duo"), "duo needs gates=FILE"));
  EXPECT_TRUE(contains(refusal("snapkv:prompt=later"), "expected exact or chunked"));
  EXPECT_TRUE(contains(refusal("snapkw"), "did you mean snapkv?"));
}

TEST(SelectSpec, RefusalsOfBlocks) {
  EXPECT_TRUE(contains(refusal("infllm:local=100,span=101"),
                       "span: expected at most the local=100 tokens, found 101"));
  EXPECT_TRUE(contains(refusal("infllm:local=0"), "local: expected a whole number from 1"));
  EXPECT_TRUE(contains(refusal("infllm:span=0"), "span: expected a whole number from 1 to 4096"));
  EXPECT_TRUE(
      contains(refusal("infllm:block=100"), "block: expected a multiple of 64 tokens, found 100"));
  EXPECT_TRUE(contains(refusal("infllm:block=64,repr=65"),
                       "repr: expected at most the block=64 tokens, found 65"));
  EXPECT_TRUE(contains(refusal("infllm:resident=15,offload=file"),
                       "resident: expected at least the topk=16 blocks that are retrieved, found "
                       "15"));
  EXPECT_TRUE(contains(refusal("infllm:offload=disk"),
                       "offload: expected memory, file, or the folder of the file, with a slash"));
  EXPECT_TRUE(contains(refusal("infllm:total=0"), "total: expected a whole number from 1"));
  EXPECT_TRUE(contains(refusal("infllm:keep=0.5"), "infllm has no parameter 'keep'"));
  for (const char* other : {"hadamard+int4", "kivi2", "int8:group=row", "int4:tail=5000",
                            "int4:sinks=9,prefill=exact", "best4", "infllm:init=3+int4:sinks=4"}) {
    const std::string spec = contains(other, "infllm") ? other : std::string("infllm+") + other;
    EXPECT_TRUE(contains(refusal(spec), "infllm: expected a codec of its blocks and no projector"))
        << refusal(spec);
  }
}

TEST(SelectSpec, ImpossibleSpecsAreToldApart) {
  SelectorSpec spec;
  spec.kind = SelectorSpec::Kind::tova;
  spec.joint = true;
  EXPECT_NE(selector_error(spec), "");
  spec = find_selector("snapkv")->spec;
  spec.window = 0;
  EXPECT_NE(selector_error(spec), "");
  spec = find_selector("snapkv")->spec;
  spec.share = 0;
  EXPECT_NE(selector_error(spec), "");
  spec = find_selector("h2o")->spec;
  spec.recent = -2;
  EXPECT_NE(selector_error(spec), "");
}

TEST(SelectSpec, BudgetsBeyondTheSessionAreRefused) {
  const auto error = [](const char* text, int n_ctx) {
    return selector_room_error(CacheSpec::parse(text).selector, n_ctx);
  };
  EXPECT_EQ(error("h2o:keep=512", 512), "");
  EXPECT_EQ(error("h2o:keep=513", 512),
            "keep: expected at most the 512 tokens of the session (n_ctx), found 513");
  EXPECT_EQ(error("h2o_realdrop:heavy=300,recent=300", 512),
            "heavy and recent: expected at most the 512 tokens of the session (n_ctx), found 600");
  EXPECT_EQ(error("snapkv:window=127", 128), "");
  EXPECT_EQ(error("snapkv:window=128", 128),
            "window: expected fewer than the 128 tokens of the session (n_ctx), found 128");
  EXPECT_EQ(error("knorm:sinks=100,recent=100", 128),
            "sinks and recent: expected at most the 128 tokens of the session (n_ctx), found 200");
  // Defaults fit short sessions: these just drop nothing.
  for (const char* text : {"snapkv", "h2o_realdrop", "infllm", "quest", "tova", "full"}) {
    EXPECT_EQ(error(text, 32), "") << text;
  }
}

}  // namespace
}  // namespace kve
