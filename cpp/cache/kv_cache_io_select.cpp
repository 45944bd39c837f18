#include "cache/kv_cache_io_select.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "kernels/few_rows.h"

namespace kve {
namespace {

constexpr int64_t kMostMoments = int64_t{1} << 53;  // of which a float64 counts each

using Kind = SelectorSpec::Kind;

float get_finite(std::string_view what, StateReader* in) {
  const auto value = in->get<float>(what);
  if (!std::isfinite(value)) throw FormatError(message("cache state: ", what, " is not finite"));
  return value;
}

void load_positions(const SelectionCounts& counts, int sinks, const std::string& where,
                    StateReader* in, KeptHead* head) {
  const int n_tokens = counts.n_tokens - counts.shift;
  const auto rows = in->get<int32_t>("rows");
  if (rows < std::min(n_tokens, sinks) || rows > n_tokens ||
      static_cast<size_t>(rows) > in->left() / sizeof(int32_t)) {
    bad_field(where, "a number of rows of", rows);
  }
  head->append(rows, 0, false);
  for (int r = 0; r < rows; ++r) {
    const auto position = in->get<int32_t>("position");
    const int least = r == 0 ? 0 : head->positions[static_cast<size_t>(r - 1)] + 1;
    // Sinks are never dropped.
    if (position < least || position >= n_tokens || (r < sinks && position != r)) {
      bad_field(where, "a position of", position);
    }
    head->positions[static_cast<size_t>(r)] = position;
  }
  for (uint64_t& word : head->dead) word = in->get<uint64_t>("dead rows");
  const int odd = rows % 64;
  if (odd != 0 && head->dead.back() >> odd != 0) bad_field(where, "a dead row after", rows);
  head->count_dead();
}

// Tokens that were read after the latest drop are all there, in live rows: going back to any of
// them is allowed.
void check_drops(const SelectorSpec& spec, const SelectionCounts& counts, const std::string& where,
                 const KeptHead& head) {
  const int first = head.rows_before(counts.dropped_at - counts.shift);
  const int newest = counts.n_tokens - counts.dropped_at;
  if (head.rows() - first != newest) {
    refuse_field(where, "rows since the latest drop", newest, head.rows() - first);
  }
  if (spec.kind == Kind::h2o_bench && (head.rows() != counts.n_tokens || head.n_dead > 0)) {
    refuse_field(where, "rows that every query head may see", counts.n_tokens, head.alive());
  }
  for (int row = first; row < head.rows(); ++row) {
    if (head.is_dead(row)) refuse_field(where, "dead rows", message("rows before ", first), row);
  }
  if (!spec.reassign) return;
  const int stay = counts.n_tokens - counts.shift;
  if (head.rows() != stay) refuse_field(where, "rows at reassigned positions", stay, head.rows());
  if (head.n_dead > 0) {
    refuse_field(where, "dead rows at reassigned positions", "none", head.n_dead);
  }
}

void load_mass(bool weighs, const std::string& where, StateReader* in, KeptHead* head) {
  const auto n = in->get<int32_t>("number of masses");
  // Rows of tokens that were not observed have none; append() makes room.
  const int most = weighs ? head->rows() : 0;
  if (n < 0 || n > most) {
    refuse_field(where, "number of masses", most > 0 ? message("0 to ", most) : "0", n);
  }
  if (static_cast<size_t>(n) > in->left() / sizeof(float)) {
    refuse_field(where, "number of masses", message("at most ", in->left() / sizeof(float)), n);
  }
  head->mass.resize(static_cast<size_t>(n));
  if (weighs) head->pending.resize(static_cast<size_t>(n));
  for (float& mass : head->mass) {
    mass = get_finite("mass", in);
    if (mass < 0) bad_field(where, "a mass below", 0);
  }
}

void load_moments(const LayerShape& shape, const std::string& where, StateReader* in,
                  Voters* voters) {
  const auto n_heads = in->get<int32_t>("query heads of moments");
  const int expected = voters->wants_moments() ? voters->n_heads() : 0;
  if (n_heads != expected) refuse_field(where, "query heads of moments", expected, n_heads);
  if (n_heads == 0) return;
  const auto count = in->get<int64_t>("number of queries");
  const size_t per_head =
      static_cast<size_t>(shape.key_dim) * static_cast<size_t>(shape.key_dim + 1);
  if (count < 0 || count > kMostMoments ||
      (count > 0 && per_head > in->left() / sizeof(double) / static_cast<size_t>(n_heads))) {
    bad_field(where, "a number of queries of", count);
  }
  for (double& sum : voters->restore_moments(n_heads, shape.key_dim)->restore(count)) {
    sum = in->get<double>("sum of queries");
    if (!std::isfinite(sum)) bad_field(where, "a sum of queries that is", -1);
  }
}

void load_voters(const LayerShape& shape, int n_tokens, const std::string& where, StateReader* in,
                 Voters* voters) {
  const auto n = in->get<int32_t>("number of voters");
  const auto n_heads = in->get<int32_t>("query heads");
  const auto width = in->get<int32_t>("width of a query");
  if (n_heads < 0 || n_heads % shape.n_kv_heads != 0) {
    refuse_field(where, "query heads", message("a multiple of ", shape.n_kv_heads), n_heads);
  }
  const int64_t expected = int64_t{n_heads} * shape.key_dim;
  if (width != expected) refuse_field(where, "width of a query", expected, width);
  // Where only sums are kept, no query stays.
  int64_t most = voters->most() > 0 ? int64_t{2} * voters->most() + kFewRows : 0;
  most = n_heads > 0 ? std::min<int64_t>(most, n_tokens) : 0;
  if (n < 0 || n > most) {
    refuse_field(where, "number of voters", message("0 to ", most), n);
  }
  const auto floats = static_cast<int64_t>(in->left() / sizeof(float));
  if (n > 0 && n > floats / (int64_t{width} + n_heads)) {
    bad_field(where, "a number of voters of", n);
  }
  voters->restore(n, n_heads, width);
  for (int64_t i = 0; i < int64_t{n} * width; ++i) {
    voters->writable_queries()[i] = get_finite("query", in);
  }
  for (int64_t i = 0; i < int64_t{n} * n_heads; ++i) {
    voters->writable_sums()[i] = get_finite("sum of weights", in);
  }
  load_moments(shape, where, in, voters);
}

// Heads that share pages keep the same rows, and all heads of a layer where its selector chooses
// for them together.
void check_heads(const SelectorSpec& spec, const std::string& where, const LayerCache& layer) {
  const bool all = spec.kind == Kind::tova || spec.reassign;
  const size_t group = all ? layer.kept.size() : static_cast<size_t>(layer.heads_per_group());
  for (size_t h = 0; h < layer.kept.size(); ++h) {
    const KeptHead& head = layer.kept[h];
    const KeptHead& first = layer.kept[h / group * group];
    if (head.positions == first.positions && head.dead == first.dead) continue;
    throw FormatError(message("cache state, ", where, ", kv head ", h,
                              ": expected the rows of kv head ", h / group * group,
                              ", found others"));
  }
}

}  // namespace

uint64_t budgets_checksum(const Selector& selector, std::span<const LayerShape> shapes) {
  std::vector<int32_t> budgets;
  LayerPlace place{.n_layers = static_cast<int>(shapes.size())};
  for (const LayerShape& shape : shapes) {
    for (int h = 0; h < shape.n_kv_heads; ++h) budgets.push_back(selector.budget(place, h));
    ++place.layer;
  }
  return hash64(std::as_bytes(std::span(budgets)));
}

void save_counts(const SelectionCounts& counts, StateWriter* out) {
  out->put<int32_t>(counts.prompt_tokens);
  out->put<int32_t>(counts.selected_at);
  out->put<int32_t>(counts.dropped_at);
  out->put<int32_t>(counts.shift);
}

SelectionCounts load_counts(int n_tokens, const SelectorSpec& spec, StateReader* in) {
  SelectionCounts out{.n_tokens = n_tokens};
  out.prompt_tokens = in->get<int32_t>("tokens of the prompt");
  out.selected_at = in->get<int32_t>("tokens at the latest selection");
  out.dropped_at = in->get<int32_t>("tokens at the latest drop");
  out.shift = in->get<int32_t>("shift");
  const auto check = [](std::string_view what, int found, int most) {
    if (found < 0 || found > most) {
      refuse_field("header", what, most > 0 ? message("0 to ", most) : "0", found);
    }
  };
  check("tokens at the latest selection", out.selected_at, n_tokens);
  check("tokens of the prompt", out.prompt_tokens, out.selected_at);
  check("tokens at the latest drop", out.dropped_at, out.selected_at);
  // A prompt that is repeated was never dropped from.
  const bool waits = spec.kind == SelectorSpec::Kind::kvzip && out.prompt_tokens == 0;
  if (waits) check("tokens at the latest drop, before the prompt's end", out.dropped_at, 0);
  check("shift", out.shift, spec.reassign ? out.dropped_at : 0);
  return out;
}

void save_kept(const LayerCache& layer, StateWriter* out) {
  for (const KeptHead& head : layer.kept) {
    out->put<int32_t>(head.rows());
    for (const int32_t position : head.positions) out->put(position);
    for (const uint64_t word : head.dead) out->put(word);
    out->put(static_cast<int32_t>(head.mass.size()));
    for (const float mass : head.mass) out->put(mass);
  }
  if (!layer.voters) return;
  const Voters& voters = *layer.voters;
  const int n = voters.committed();
  out->put<int32_t>(n);
  out->put<int32_t>(voters.n_heads());
  out->put<int32_t>(voters.width());
  const auto put_floats = [&](const float* data, size_t count) {
    out->put_bytes(reinterpret_cast<const std::byte*>(data), count * sizeof(float));
  };
  put_floats(voters.queries(0, n).data,
             static_cast<size_t>(n) * static_cast<size_t>(voters.width()));
  put_floats(voters.sums_of(0), static_cast<size_t>(n) * static_cast<size_t>(voters.n_heads()));
  const QueryMoments* moments = voters.moments();
  out->put<int32_t>(moments == nullptr ? 0 : moments->n_heads());
  if (moments != nullptr) {
    out->put<int64_t>(moments->count());
    if (moments->count() > 0) {
      for (const double sum : moments->sums()) out->put(sum);
    }
  }
  layer.masks.save(out);
}

void load_kept(const LayerShape& shape, const SelectorSpec& spec, const SelectionCounts& counts,
               const std::string& where, StateReader* in, LayerCache* layer) {
  for (size_t h = 0; h < layer->kept.size(); ++h) {
    KeptHead& head = layer->kept[h];
    const std::string head_name = message(where, ", kv head ", h);
    load_positions(counts, layer->sinks, head_name, in, &head);
    check_drops(spec, counts, head_name, head);
    load_mass(layer->weighs(), head_name, in, &head);
  }
  check_heads(spec, where, *layer);
  if (!layer->voters) return;
  load_voters(shape, counts.n_tokens, where, in, &*layer->voters);
  if (spec.kind != Kind::h2o_bench || counts.dropped_at == 0) return;
  // Each query head has masks from the first step on.
  if (layer->voters->n_heads() == 0) bad_field(where, "a number of query heads of", 0);
  layer->masks.load(layer->voters->n_heads(), counts.dropped_at, where, in);
}

}  // namespace kve
