// kvengine-bench: tokens per second of prefill (pp) and decode (tg) at several depths and caches.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>

#include "common/arguments.h"
#include "common/json.h"
#include "kvengine.h"

namespace {

struct Options {
  std::string model;
  kve::LoadOptions load;
  std::vector<int> prompts = {512};
  std::vector<int> decodes = {32};
  std::vector<int> depths = {0};
  std::vector<int> sequences = {1};
  std::vector<std::string> caches;
  int repeats = 5;
  bool exact = false;
  bool json = false;
};

struct Result {
  std::string test;
  std::string cache;
  std::vector<double> tps;
  int64_t cache_bytes = 0;

  double median() const {
    std::vector<double> sorted = tps;
    std::sort(sorted.begin(), sorted.end());
    const size_t n = sorted.size();
    return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
  }
};

// Arbitrary but fixed text-like tokens: speed does not depend on which they are.
std::vector<kve::Token> tokens_for(const kve::Model& model, int n) {
  std::vector<kve::Token> tokens(static_cast<size_t>(n));
  uint32_t state = 12345;
  for (kve::Token& token : tokens) {
    state = state * 1664525u + 1013904223u;
    token = static_cast<kve::Token>((state >> 8) % static_cast<uint32_t>(model.spec().vocab_size));
  }
  return tokens;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// One token of every session after the other, all sessions in one forward pass.
void decode_together(std::vector<kve::Session>& sessions, std::span<const kve::Token> tokens) {
  std::vector<kve::BatchInput> inputs(sessions.size());
  for (const kve::Token& token : tokens) {
    for (size_t i = 0; i < sessions.size(); ++i) inputs[i] = {&sessions[i], {&token, 1}};
    kve::forward_batch(inputs);
  }
}

// Repeats one measurement on forks of a session that already holds `depth` tokens. Tokens of all
// `sequences` count; 0 reads a prompt instead of decoding.
Result measure(const Options& o, kve::Session& prepared, int n, int sequences) {
  const int depth = prepared.n_tokens();
  Result result;
  result.test = kve::message(sequences > 0 ? "tg" : "pp", n);
  if (sequences > 1) result.test += kve::message("x", sequences);
  if (depth > 0) result.test += kve::message("@d", depth);
  const std::vector<kve::Token> tokens = tokens_for(prepared.model(), n);
  for (int repeat = 0; repeat <= o.repeats; ++repeat) {  // the first warms up
    std::vector<kve::Session> sessions;
    for (int i = 0; i < std::max(sequences, 1); ++i) sessions.push_back(prepared.fork());
    const auto start = std::chrono::steady_clock::now();
    if (sequences > 1) {
      decode_together(sessions, tokens);
    } else if (sequences == 1) {
      for (const kve::Token& token : tokens) sessions[0].forward({&token, 1});
    } else {
      sessions[0].forward(tokens);
    }
    if (repeat > 0) result.tps.push_back(n * std::max(sequences, 1) / seconds_since(start));
    const kve::CacheStats stats = sessions[0].cache_stats();
    result.cache = stats.spec;
    result.cache_bytes = stats.bytes;
  }
  return result;
}

void print(const Options& o, const std::vector<Result>& results, int threads) {
  if (!o.json) {
    std::printf("%-14s %-36s %10s %10s %10s %14s\n", "test", "cache", "t/s", "min", "max",
                "cache bytes");
  }
  std::string documents;
  for (const Result& r : results) {
    const auto [low, high] = std::minmax_element(r.tps.begin(), r.tps.end());
    if (!o.json) {
      std::printf("%-14s %-36s %10.1f %10.1f %10.1f %14lld\n", r.test.c_str(), r.cache.c_str(),
                  r.median(), *low, *high, static_cast<long long>(r.cache_bytes));
      continue;
    }
    if (!documents.empty()) documents += ", ";
    documents += tools::JsonObject()
                     .add("test", r.test)
                     .add("cache", r.cache)
                     .add("engine", "kvengine")
                     .add_raw("tps", tools::json_array(r.tps))
                     .add("tps_median", r.median())
                     .add("cache_bytes", r.cache_bytes)
                     .add("threads", threads)
                     .str();
  }
  if (o.json) std::cout << '[' << documents << "]\n";
}

void check_counts(const char* name, const std::vector<int>& counts, int low) {
  for (const int count : counts) {
    if (count < low || count > 10'000'000) {
      throw kve::ConfigError(
          kve::message(name, ": expected ", low, " to 10000000 tokens, found ", count));
    }
  }
}

int run(const Options& o) {
  check_counts("-p", o.prompts, 0);
  check_counts("-n", o.decodes, 0);
  check_counts("-d", o.depths, 0);
  for (const int n : o.sequences) {
    if (n < 1 || n > 1024) {
      throw kve::ConfigError(
          kve::message("--sequences: expected 1 to 1024 in one batch, found ", n));
    }
  }
  if (o.repeats < 1 || o.repeats > 1000) {
    throw kve::ConfigError(kve::message("-r: expected 1 to 1000 repeats, found ", o.repeats));
  }
  const auto model = kve::Model::load(tools::model_path(o.model), o.load);
  tools::tell_device("kvengine-bench", *model);
  const auto largest = [](const std::vector<int>& v) {
    return *std::max_element(v.begin(), v.end());
  };
  std::vector<Result> results;
  for (const std::string& cache : o.caches.empty() ? std::vector<std::string>{"f16"} : o.caches) {
    tools::tell_warnings("kvengine-bench", *model, kve::CacheSpec::parse(cache));
    for (const int depth : o.depths) {
      kve::SessionOptions options;
      options.cache = kve::CacheSpec::parse(cache);
      options.exact = o.exact;
      options.n_ctx = depth + std::max({largest(o.prompts), largest(o.decodes), 1});
      kve::Session session = model->session(options);
      if (depth > 0) session.forward(tokens_for(*model, depth));
      for (const int n : o.prompts) {
        if (n > 0) results.push_back(measure(o, session, n, 0));
      }
      for (const int n : o.decodes) {
        for (const int sequences : o.sequences) {
          if (n > 0) results.push_back(measure(o, session, n, sequences));
        }
      }
    }
  }
  print(o, results, model->threads());
  return tools::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measure prefill and decode speed.", "kvengine-bench");
  Options o;
  app.set_version_flag("--version", std::string(kve::version()));
  app.add_option("-m,--model", o.model, "GGUF file (default: the model `kvengine pull` fetched)");
  app.add_option("-t,--threads", o.load.threads, "threads, 0 for all");
  app.add_option("-p,--n-prompt", o.prompts, "prompt lengths, e.g. 512,2048")->delimiter(',');
  app.add_option("-n,--n-gen", o.decodes, "tokens decoded one by one")->delimiter(',');
  app.add_option("-d,--n-depth", o.depths, "tokens already in the cache")->delimiter(',');
  app.add_option("--np,--parallel,--sequences", o.sequences,
                 "sequences decoded together, e.g. 1,8; tokens of all of them count")
      ->delimiter(',');
  app.add_option("--cache", o.caches, "cache spec (repeatable)")->allow_extra_args(false);
  app.add_option("-r,--repetitions", o.repeats, "measured repeats")->capture_default_str();
  app.add_option("--device", o.load.device, "cpu, cuda or auto")->capture_default_str();
  app.add_flag("!--no-repack", o.load.repack, "read weights as they lie in the file");
  app.add_flag("--exact", o.exact, "f32 activations, reference kernels");
  app.add_flag("--json", o.json, "one JSON document");
  try {
    app.parse(tools::normalised_arguments(argc, argv));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    std::cerr << "kvengine-bench: " << error.what() << " (see --help)\n";
    return tools::kBadInput;
  }
  return tools::report_errors("kvengine-bench", [&] { return run(o); });
}
