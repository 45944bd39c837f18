// Time per value of coding and decoding pages of the caches' codecs, on one thread: 64 rows of a
// head of 64, or of a row of three such heads.
#include <string>

#include "formats/cache_codecs.h"
#include "kernels/cpu/dispatch.h"
#include "kernels_bench.h"

namespace kernels_bench {
namespace {

using kve::Channels;
using kve::CodecSpec;
using kve::Coding;
using kve::Fit;
using kve::PageFormat;
using kve::Per;
using kve::ScaleFormat;

CodecSpec coded(Coding coding, int bits, int group, Per per = Per::token, Fit fit = Fit::range,
                ScaleFormat scale = ScaleFormat::half, Channels channels = Channels::plain) {
  return {.id = kve::CodecId::coded,
          .coding = {coding, static_cast<uint8_t>(bits), fit, scale},
          .per = per,
          .channels = channels,
          .group = group};
}

struct Named {
  const char* name;
  CodecSpec codec;
  int width = 64;
  const uint8_t* strip_bits = nullptr;
};

// As reverse water-filling gives them to keys of 4 bits on average.
constexpr uint8_t kStripBits[] = {8, 7, 6, 5, 5, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 1};

const Named kCodecs[] = {
    {"f16", {.id = kve::CodecId::f16}},
    {"q8_0", coded(Coding::q8_0, 8, 32)},
    {"q5_1", coded(Coding::q5_1, 5, 32)},
    {"q4_0", coded(Coding::q4_0, 4, 32)},
    {"iq4_nl", coded(Coding::iq4_nl, 4, 32)},
    {"nf4", coded(Coding::nf4, 4, 64)},
    {"e4m3", coded(Coding::e4m3, 8, 64)},
    {"flexgen4", coded(Coding::asym, 4, 32)},
    {"kivi2_keys", coded(Coding::asym, 2, 32, Per::channel)},
    {"kivi4_keys", coded(Coding::asym, 4, 32, Per::channel)},
    {"rtn4", coded(Coding::sym, 4, kve::kWholeRow), 192},
    {"turbo4", coded(Coding::lloyd, 4, kve::kWholeHead, Per::token, Fit::norm)},
    {"turbo2", coded(Coding::lloyd, 2, kve::kWholeHead, Per::token, Fit::norm)},
    {"best4_keys", coded(Coding::asym, 4, 64, Per::channel, Fit::search, ScaleFormat::log8)},
    {"klt4_keys", coded(Coding::asym, 4, 64, Per::channel, Fit::search, ScaleFormat::log8), 64,
     kStripBits},
    {"best2_keys", coded(Coding::asym, 2, 64, Per::channel, Fit::search, ScaleFormat::log8)},
    {"best4_values",
     coded(Coding::lloyd, 4, kve::kWholeHead, Per::token, Fit::energy, ScaleFormat::log8)},
    {"best2_values",
     coded(Coding::lloyd, 2, kve::kWholeHead, Per::token, Fit::energy, ScaleFormat::log8)},
    {"kvarn4_keys",
     coded(Coding::asym, 4, 64, Per::channel, Fit::range, ScaleFormat::half, Channels::scaled)},
    {"kvarn4_values", coded(Coding::asym, 4, kve::kWholeHead, Per::token, Fit::range,
                            ScaleFormat::half, Channels::scaled)},
};

struct Page {
  Page(const Named& named, bool values)
      : format(page_format(named.codec, named.width, values)),
        rows(pseudo_random_values(int64_t{kve::kPageTokens} * named.width)),
        bytes(page_bytes(format)),
        scratch(encode_scratch(format)) {
    format.coded.strip_bits = named.strip_bits;
  }
  bool encode(int n_rows) {
    return kve::choose_kernels("").encode_rows(format, rows.data(), format.width, bytes.data(), 0,
                                               n_rows, scratch.data());
  }

  PageFormat format;
  std::vector<float> rows;
  std::vector<std::byte> bytes;
  std::vector<std::byte> scratch;
};

void count_values(benchmark::State& state, int64_t values) {
  state.counters["value"] = benchmark::Counter(
      static_cast<double>(values),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void encode(benchmark::State& state, const Named& named) {
  const auto n_rows = static_cast<int>(state.range(0));
  const bool values = state.range(1) != 0;
  if (values && named.strip_bits != nullptr) return state.SkipWithError("strips of keys");
  Page page(named, values);
  if (n_rows % rows_per_unit(page.format) != 0) return state.SkipWithError("not a whole unit");
  for (auto _ : state) {
    if (!page.encode(n_rows)) state.SkipWithError("values that are not finite");
  }
  count_values(state, int64_t{n_rows} * named.width);
}

void decode(benchmark::State& state, const Named& named) {
  Page page(named, state.range(0) != 0);
  if (!page.encode(kve::kPageTokens)) state.SkipWithError("values that are not finite");
  for (auto _ : state) {
    kve::choose_kernels("").decode_rows(page.format, page.bytes.data(), 0, kve::kPageTokens, 0,
                                        named.width, page.rows.data(), named.width);
    benchmark::DoNotOptimize(page.rows.data());
  }
  count_values(state, int64_t{kve::kPageTokens} * named.width);
}

const bool kRegistered = [] {
  for (const Named& named : kCodecs) {
    const auto add = [&](const char* name, void (*run)(benchmark::State&, const Named&)) {
      return benchmark::RegisterBenchmark(
          (std::string(name) + named.name).c_str(),
          [run, &named](benchmark::State& state) { run(state, named); });
    };
    add("encode/", &encode)->ArgNames({"rows", "values"})->ArgsProduct({{1, 32, 64}, {0, 1}});
    add("decode/", &decode)->ArgNames({"values"})->Arg(0)->Arg(1);
  }
  return true;
}();

}  // namespace
}  // namespace kernels_bench
