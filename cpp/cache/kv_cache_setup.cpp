// What every side of a cache is made of, by its spec.
#include <algorithm>

#include "base/error.h"
#include "cache/kv_cache_state.h"

namespace kve {
namespace {

// Heads share pages where a scale or a factor belongs to all of them.
bool heads_share(const SideSpec& spec) {
  return spec.codec.group == kWholeRow || spec.projector.kind == ProjectorSpec::Kind::mpo;
}

}  // namespace

std::shared_ptr<const Basis> KvCache::State::shared_basis(const ProjectorSpec& projector, int dim) {
  if (!projector.is_fixed() || projector.kind == ProjectorSpec::Kind::none) return nullptr;
  if (projector.calibrated) return nullptr;
  for (const SharedBasis& known : shared) {
    if (known.projector == projector && known.dim == dim) return known.basis;
  }
  std::shared_ptr<const Basis> basis = Basis::make(fixed_basis(projector, dim), counter);
  shared.push_back({projector, dim, basis});
  return basis;
}

// Of the group of heads that begins with `head`.
std::shared_ptr<const Basis> KvCache::State::latent_basis(const SideSetup& side, size_t layer,
                                                          int head) {
  const int group = head / side.n_heads;
  const auto made = [&](const BasisData& data) {
    KVE_ASSERT(data.dim == side.width() && data.block == data.dim);
    latent.push_back(Basis::make(data, counter));
    return latent.back();
  };
  if (side.spec.projector.calibrated) {
    return made(file->basis(static_cast<int>(layer), side.values, group, side.head_dim,
                            side.spec.projector));
  }
  const LatentBases& bases = *shapes[layer].latents;
  return made((side.values ? bases.values : bases.keys).at(static_cast<size_t>(group)));
}

bool KvCache::State::is_latent(const SideSpec& side, size_t layer) const {
  const bool plain = side.projector.kind == ProjectorSpec::Kind::none;
  const bool of_file =
      side.projector.calibrated && side.projector.kind == ProjectorSpec::Kind::lowrank;
  return of_file || (plain && shapes[layer].latents != nullptr);
}

int KvCache::State::heads_per_side(const SideSpec& side, size_t layer) const {
  const int n_kv_heads = shapes[layer].n_kv_heads;
  if (!is_latent(side, layer)) return heads_share(side) ? n_kv_heads : 1;
  if (!side.projector.calibrated) return shapes[layer].latents->group;
  if (n_kv_heads % file->group() == 0) return file->group();
  throw ConfigError(message("cache ", side.str(), " does not fit layer ", layer, ": its ",
                            n_kv_heads, " kv heads are no multiple of the ", file->group(),
                            " that the file's bases join"));
}

SideSetup KvCache::State::setup(size_t layer, int head, bool values) {
  const LayerShape& shape = shapes[layer];
  SideSetup out;
  // With blocks, the codec is theirs and the local window is in f16.
  if (!has_blocks(layer)) {
    out.spec = spec.side(static_cast<int>(layer), static_cast<int>(shapes.size()), head, values);
  }
  const ProjectorSpec& projector = out.spec.projector;
  if (projector.kind == ProjectorSpec::Kind::think && out.spec.seal != Seal::window) {
    out.spec.tail = std::max(out.spec.tail, projector.window);
  }
  out.values = values;
  out.head_dim = values ? shape.value_dim : shape.key_dim;
  out.n_heads = heads_per_side(out.spec, layer);
  out.latent = is_latent(out.spec, layer);
  out.sinks = has_blocks(layer) ? 0 : spec.sinks;
  out.exact_prefill = waits_for_prompt();
  out.basis = shared_basis(out.spec.projector, out.head_dim);
  if (!values) out.rotation = shape.rotation;
  return out;
}

BlockSetup KvCache::State::block_setup(size_t layer) {
  const LayerShape& shape = shapes[layer];
  const std::string where = message("layer ", layer);
  if (shape.rotation == nullptr) {
    throw ConfigError(message("cache infllm does not fit ", where,
                              ": expected keys that can be turned back to position 0, found those "
                              "without a rotary embedding, or of heads merged after it"));
  }
  if (shape.latents != nullptr) {
    throw ConfigError(message("cache infllm does not fit ", where,
                              ": expected keys and values of their own, found latents"));
  }
  BlockSetup out{.spec = spec.selector,
                 .n_kv_heads = shape.n_kv_heads,
                 .key_dim = shape.key_dim,
                 .value_dim = shape.value_dim,
                 .rotation = shape.rotation,
                 .keys = {},
                 .values = {}};
  for (const bool values : {false, true}) {
    for (int head = 0; head < shape.n_kv_heads; ++head) {
      SideSetup side = setup(layer, head, values);
      side.spec = spec.side(static_cast<int>(layer), static_cast<int>(shapes.size()), head, values);
      side.check(where);
      (values ? out.values : out.keys)
          .push_back(page_format(side.spec.codec, side.head_dim, values));
    }
  }
  return out;
}

void KvCache::State::make_blocks(size_t layer) {
  if (!has_blocks(layer)) return;
  const std::string& offload = spec.selector.offload;
  if (!offload.empty() && block_file == nullptr) {
    block_file = std::make_shared<BlockFile>(offload == "file" ? "" : offload);
  }
  if (block_work == nullptr) block_work = std::make_unique<BlockWork>();
  layers[layer].blocks.emplace(block_setup(layer), block_file, counter);
}

// The bases of calibrated keys, of all kv heads of a layer.
void KvCache::State::add_klt_bases(size_t layer, std::span<SideSetup> sides) {
  std::vector<const SideSetup*> setups;
  std::vector<Klt> heads;
  for (const SideSetup& side : sides) {
    setups.push_back(&side);
    const auto head = static_cast<int>(heads.size());
    heads.push_back(file->klt(static_cast<int>(layer), head, side.head_dim));
  }
  const std::vector<BasisData> found = klt_bases(setups, heads);
  for (size_t i = 0; i < sides.size(); ++i) {
    sides[i].basis = Basis::make(found[i], counter);
    latent.push_back(sides[i].basis);
  }
}

// Of every side of the layer, checked.
std::vector<SideSetup> KvCache::State::setups(size_t layer, bool values) {
  const std::string where = message("layer ", layer);
  std::vector<SideSetup> out;
  for (int head = 0; head < shapes[layer].n_kv_heads; ++head) {
    SideSetup one = setup(layer, head, values);
    if (one.latent) {
      const bool begins = head % one.n_heads == 0;
      one.basis = begins ? latent_basis(one, layer, head) : out.back().basis;
    }
    one.check(where);
    if (head > 0 && (!one.spec.seals_with(out[0].spec) || one.n_heads != out[0].n_heads)) {
      throw ConfigError(message("cache ", one.spec.str(), " does not fit ", where, ": kv head ",
                                head, " would be sealed apart from head 0 with ", out[0].spec.str(),
                                "; heads of one layer share projector, tail, seal and rows that "
                                "are coded together"));
    }
    if (head > 0 && one.n_heads > 1 && one.spec != out[0].spec) {
      throw ConfigError(message("cache ", one.spec.str(), " does not fit ", where,
                                ": its heads share pages, and head 0 has ", out[0].spec.str()));
    }
    if (head % one.n_heads == 0) out.push_back(std::move(one));
  }
  const ProjectorSpec& projector = out[0].spec.projector;
  if (projector.kind == ProjectorSpec::Kind::klt && projector.calibrated) add_klt_bases(layer, out);
  return out;
}

// Rules that name layers or heads which the model does not have.
void KvCache::State::check_rules() const {
  const auto n_layers = static_cast<int>(shapes.size());
  for (const LayerRule& rule : spec.rules) {
    const LayerChoice& named = rule.layers;
    const int most = std::max({named.first, named.last, named.end});
    if (most > n_layers) {
      throw ConfigError(message("cache spec: expected first, last and layers within the model's ",
                                n_layers, " layers, found ", most,
                                most == named.end ? " of them up to the last one named" : ""));
    }
    for (int i = 0; i < n_layers; ++i) {
      const int heads = shapes[static_cast<size_t>(i)].n_kv_heads;
      if (!rule.has(i, n_layers) || rule.heads.end <= heads) continue;
      throw ConfigError(message("cache spec: expected heads within the ", heads, " of layer ", i,
                                ", found ", rule.heads.end, " of them up to the last one named"));
    }
  }
}

}  // namespace kve
