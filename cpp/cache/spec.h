// cache/: what to remember. A cache spec names the choices; kv_cache.h keeps the pages.
//
// spec  = stage {"+" stage}      stage = ["k=" | "v="] name [":" key=value {"," key=value}]
// Blanks around names and signs are ignored. A stage without k= or v= is for both sides; a side
// that no stage names is f16. "int4:group=32,tail=64", "k=q8_0 + v=q4_0", "flexgen4".
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "formats/cache_codecs.h"

namespace kve {

inline constexpr int kMaxTail = 1'000'000;
inline constexpr size_t kMaxSpecLength = 4096;

// One side (keys or values): how many bits, and how many of the newest tokens stay in f16.
struct SideSpec {
  CodecSpec codec;
  int tail = 0;

  // Without a tail rows are coded as they arrive: a chunk attends to its own coded rows.
  bool eager() const { return tail == 0; }
  // One stage, with the parameters that matter: "f16", "int4:group=32,tail=64".
  std::string str() const;
  bool operator==(const SideSpec&) const = default;
};

struct CacheSpec {
  SideSpec k;
  SideSpec v;

  // Throws ConfigError: what was not understood, where, and what is known.
  static CacheSpec parse(std::string_view text);
  // Canonical; parse(str()) == *this.
  std::string str() const;
  bool operator==(const CacheSpec&) const = default;
};

// A line of `kvengine caches`.
struct CacheListing {
  std::string name;
  std::string kind;         // "codec", "preset", later "selector", "projector"
  std::string spec;         // canonical spec the name stands for
  std::string description;  // one line
  std::string parameters;   // defaults and what is allowed: "tail=0 (0..1000000)"
  std::string paper;        // arXiv id, or where the format comes from
  double bits_per_value;    // of coded rows, scales included
};
std::vector<CacheListing> list_caches();

}  // namespace kve
