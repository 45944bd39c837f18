#include "cache/plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <tuple>

#include "base/byte_size.h"
#include "base/error.h"
#include "base/printable.h"
#include "base/random.h"

namespace kve {
namespace {

// From small to exact. The distortion is that of a Gaussian at the rate of the preset's codes, of
// which divergences are measured to be multiples, nearly the same for keys and for values.
struct Rung {
  const char* preset;
  double distortion;
};
constexpr std::array kRungs = {
    Rung{"best2", 0.1175},  Rung{"best3", 0.03455}, Rung{"best4", 0.0095},
    Rung{"best8", 0.00004}, Rung{"f16", 0},
};
constexpr int kTop = static_cast<int>(kRungs.size()) - 1;

// Rungs of one layer's keys and values.
struct Choice {
  int k = 0;
  int v = 0;
  bool operator==(const Choice&) const = default;
};

// Peaks of caches that really were filled, by shape and choice.
class Probe {
 public:
  Probe(Backend& backend, const PlanOptions& options) : backend_(backend), options_(options) {}

  // Nothing when one of the presets does not fit the shape.
  std::optional<int64_t> bytes(const LayerShape& shape, const Choice& choice) {
    const auto key = std::tuple(shape.n_kv_heads, shape.key_dim, shape.value_dim, shape.window,
                                shape.rotation.get(), choice.k, choice.v);
    const auto known = known_.find(key);
    if (known != known_.end()) return known->second;
    return known_[key] = fits(shape, choice) ? std::optional(fill(shape, choice)) : std::nullopt;
  }

 private:
  static bool fits(const LayerShape& shape, const Choice& choice) {
    try {
      KvCache(spec_of(choice), {shape});
      return true;
    } catch (const ConfigError&) {
      return false;
    }
  }

  static CacheSpec spec_of(const Choice& choice) {
    CacheSpec spec = CacheSpec::parse(kRungs[0].preset);
    spec.k = CacheSpec::parse(kRungs[static_cast<size_t>(choice.k)].preset).k;
    spec.v = CacheSpec::parse(kRungs[static_cast<size_t>(choice.v)].preset).v;
    return spec;
  }

  int64_t fill(const LayerShape& shape, const Choice& choice) {
    KvCache cache(spec_of(choice), {shape});
    const ConstMat k = rows(int64_t{shape.n_kv_heads} * shape.key_dim, &keys_);
    const ConstMat v = rows(int64_t{shape.n_kv_heads} * shape.value_dim, &values_);
    for (int done = 0; done < options_.n_ctx;) {
      const int n = std::min(options_.n_batch, options_.n_ctx - done);
      cache.append(backend_, 0, k.block(0, n), v.block(0, n));
      if (cache.wants_queries(0)) cache.observe_queries(0, k.block(0, n));
      cache.commit(backend_, n);
      done += n;
    }
    return cache.memory().peak();
  }

  // n_batch rows of any numbers: bytes do not depend on them.
  ConstMat rows(int64_t width, std::vector<float>* memory) const {
    Random random(1);
    memory->resize(static_cast<size_t>(options_.n_batch * width));
    for (float& value : *memory) value = static_cast<float>(random.uniform() - 0.5);
    return {memory->data(), options_.n_batch, width};
  }

  Backend& backend_;
  const PlanOptions& options_;
  std::vector<float> keys_;
  std::vector<float> values_;
  std::map<std::tuple<int, int, int, int, const void*, int, int>, std::optional<int64_t>> known_;
};

void check(const PlanOptions& options, size_t n_layers) {
  if (options.n_ctx < 1 || options.n_batch < 1) {
    throw ConfigError(message("cache plan: expected room for 1 token or more, found ",
                              std::min(options.n_ctx, options.n_batch)));
  }
  if (options.damage.empty()) return;
  if (options.damage.size() != 2 * n_layers) {
    throw ConfigError(message("cache plan: expected a calibration of ", n_layers,
                              " layers, found one of ", options.damage.size() / 2));
  }
  for (const double value : options.damage) {
    if (!std::isfinite(value)) {
      throw ConfigError("cache plan: expected a calibration of finite numbers");
    }
  }
}

double distortion(int rung) { return kRungs[static_cast<size_t>(rung)].distortion; }

// A side that could become better.
struct Step {
  size_t layer = 0;
  Choice to;
  int64_t bytes = 0;  // more
  double gain = 0;    // per byte
};

Step best_step(std::span<const LayerShape> layers, const std::vector<Choice>& choices,
               const PlanOptions& options, int64_t left, Probe* probe) {
  Step best;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Choice& now = choices[i];
    const int64_t bytes = probe->bytes(layers[i], now).value();
    for (const bool values : {false, true}) {
      Choice to = now;
      int& rung = values ? to.v : to.k;
      // Further than the next rung where that costs nothing more, or more than a better one.
      for (++rung; rung <= kTop; ++rung) {
        const std::optional<int64_t> raised = probe->bytes(layers[i], to);
        if (!raised || *raised - bytes > left) continue;
        const int64_t more = *raised - bytes;
        const double damage =
            options.damage.empty() ? 1 : std::max(options.damage[2 * i + (values ? 1 : 0)], 1e-9);
        const double gain = damage * (distortion(values ? now.v : now.k) - distortion(rung)) /
                            static_cast<double>(std::max<int64_t>(more, 1));
        if (gain > best.gain) best = {i, to, more, gain};
      }
    }
  }
  return best;
}

// Layers in a row that have the same become one rule; what most have is for all.
CacheSpec spec_of(const std::vector<Choice>& choices) {
  const auto preset = [](int rung) {
    return CacheSpec::parse(kRungs[static_cast<size_t>(rung)].preset);
  };
  const auto most = *std::ranges::max_element(
      choices, {}, [&](const Choice& choice) { return std::ranges::count(choices, choice); });
  CacheSpec spec = preset(0);
  spec.k = preset(most.k).k;
  spec.v = preset(most.v).v;
  bool codes = !spec.k.codec.is_float() || !spec.v.codec.is_float();
  for (size_t i = 0; i < choices.size();) {
    size_t end = i + 1;
    while (end < choices.size() && choices[end] == choices[i]) ++end;
    codes = codes || choices[i].k < kTop || choices[i].v < kTop;
    if (choices[i] != most) {
      LayerRule rule;
      rule.layers = {.begin = static_cast<int>(i), .end = static_cast<int>(end)};
      if (choices[i].k != most.k) rule.k = preset(choices[i].k).k;
      if (choices[i].v != most.v) rule.v = preset(choices[i].v).v;
      spec.rules.push_back(rule);
    }
    i = end;
  }
  if (!codes) spec.sinks = 0;
  return spec;
}

}  // namespace

CachePlan plan_cache(Backend& backend, std::span<const LayerShape> layers,
                     const PlanOptions& options) {
  check(options, layers.size());
  Probe probe(backend, options);
  std::vector<Choice> choices(layers.size());
  CachePlan plan;
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::optional<int64_t> bytes = probe.bytes(layers[i], choices[i]);
    if (!bytes) {
      throw ConfigError(message("kv budget: expected layers that ", kRungs[0].preset,
                                " fits, found another shape in layer ", i));
    }
    plan.bytes += *bytes;
  }
  if (plan.bytes > options.budget) {
    throw ConfigError(message("kv budget: expected at least ", plan.bytes, " bytes for ",
                              options.n_ctx, " tokens, found ", options.budget));
  }
  for (;;) {
    const Step step = best_step(layers, choices, options, options.budget - plan.bytes, &probe);
    if (step.gain <= 0) break;
    choices[step.layer] = step.to;
    plan.bytes += step.bytes;
  }
  plan.spec = spec_of(choices);
  for (const Choice& choice : choices) {
    plan.layers.push_back({kRungs[static_cast<size_t>(choice.k)].preset,
                           kRungs[static_cast<size_t>(choice.v)].preset});
  }
  return plan;
}

int64_t parse_budget(std::string_view text, std::span<const LayerShape> layers, int n_ctx) {
  double bytes = -1;
  if (std::string_view rest = text; rest.starts_with("bits=")) {
    rest.remove_prefix(5);
    const double bits = take_number(&rest);
    int64_t values = 0;
    for (const LayerShape& layer : layers) {
      values += int64_t{layer.n_kv_heads} * (int64_t{layer.key_dim} + layer.value_dim);
    }
    while (rest.starts_with(' ')) rest.remove_prefix(1);
    if (rest.empty()) bytes = bits * (static_cast<double>(values) * n_ctx / 8);
  } else {
    bytes = parse_byte_size(text);
  }
  if (bytes < 0) {
    throw ConfigError(
        message("kv budget: expected a size like 64MiB or bits=3, found ", quoted(text)));
  }
  return static_cast<int64_t>(std::min(bytes, kMostByteSize));
}

}  // namespace kve
