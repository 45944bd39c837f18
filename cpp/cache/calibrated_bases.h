// Bases that `kvengine calibrate --bases` has fitted to a text, kept in a file for all caches of a
// model: what the heads of a group have in common, the principal components of their keys (before
// the rotary embedding) or values, joined. A key or value then is a few coefficients for the group
// (Palu, arXiv 2407.21118, whose low-rank factors of the weights of a group, whitened by the
// inputs, span the same components: U_r U_r^T k).
//
// A GGUF file with
//   general.architecture         string "kvengine-bases"
//   kvengine.bases.version       u32 1
//   kvengine.bases.model         u64, Model::fingerprint()
//   kvengine.bases.layers        u32
//   kvengine.bases.group         u32, neighbouring kv heads that are joined
//   kvengine.bases.checksum      u64, of all tensors: see checksum()
//   blk.N.keys.G, blk.N.values.G             F32 [group * dim, components]: orthonormal rows, those
//                                            of most energy first; G: the group
//   blk.N.keys.G.energy, blk.N.values.G.energy    F32 [components]: mean squares of coefficients
// and for the Karhunen-Loeve transform of keys (project/klt.h), of every kv head H:
//   blk.N.klt.H                  F32 [dim, dim]: orthonormal rows U^T, of keys that are turned back
//                                to the first of 64 positions, those of most energy first
//   blk.N.klt.H.energy           F32 [dim]: eigenvalues, of weighted keys within pages
//   blk.N.klt.H.metric           F32 [dim]: mean squared queries, above 0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cache/basis.h"
#include "cache/project/klt.h"
#include "cache/spec.h"
#include "gguf/gguf_file.h"

namespace kve {

class CalibratedBases {
 public:
  // Throws IoError, FormatError (not such a file, or damaged), UnsupportedError (newer).
  static CalibratedBases open(const std::string& path);
  explicit CalibratedBases(std::shared_ptr<const GgufFile> file);

  uint64_t model() const { return model_; }
  uint64_t checksum() const { return checksum_; }
  int layers() const { return layers_; }
  int group() const { return group_; }  // heads

  // The leading components of a group of heads, each of `dim` values, as the projector asks for.
  // Throws FormatError when the file lacks them or they have another shape, and ConfigError when
  // the projector asks for more components than there are.
  BasisData basis(int layer, bool values, int group, int dim, const ProjectorSpec& projector) const;
  // The transform of one kv head's keys. Throws as basis() does.
  Klt klt(int layer, int head, int dim) const;

 private:
  std::shared_ptr<const GgufFile> file_;
  uint64_t model_ = 0;
  uint64_t checksum_ = 0;
  int layers_ = 0;
  int group_ = 0;
};

// What a file states to notice damage: over the tensors in their order, names and data.
uint64_t bases_checksum(const GgufFile& file);

}  // namespace kve
