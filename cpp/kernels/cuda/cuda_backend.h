// The backend of an NVIDIA GPU. Weights, activations, pages and tails lie in its memory, and
// kernels of this folder compute. What they do not know yet the CPU does with bytes that are
// fetched, which takes long: attention to pages that side_refusal() names, and what can_seal() does
// not take. Rows of embeddings are taken from the mapped file and sent, and dot_halves() is of
// numbers in the host's memory. was_on_host(), ReadPath::host and traces tell.
//
// With a limit of the device's memory for pages of caches, a quarter of it is for those that are on
// their way from the host (staging.h), where what has no room in the rest lies (twin_memory.h).
//
// Precision::exact is binary32 in products of matrices; attention rounds queries, rows and weights
// to binary16 in any precision.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/encode.h"
#include "kernels/cuda/head_tables.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/operands.h"
#include "kernels/cuda/project.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/twin_memory.h"

namespace kve::cuda {

class CudaBackend final : public Backend {
 public:
  // `host` does what the GPU does not. cache_limit: bytes; 0: none. Throws DeviceError as Device()
  // does.
  explicit CudaBackend(std::unique_ptr<Backend> host, size_t cache_limit = 0);

  std::string_view name() const override { return name_; }
  ThreadPool& pool() override { return host_->pool(); }
  MemorySource& memory() override { return memory_; }
  void keep(std::span<const std::byte> constants) override { operands_.keep(constants); }
  bool was_on_host() const override { return was_on_host_; }
  void begin_pass() override;
  int32_t end_pass() override;
  void cancel_pass() noexcept override { device_.cancel_pass(); }
  // Passes, or parts of them, that were one graph for the device.
  int64_t replays() const { return device_.replays(); }
  const TwinMemory& twins() const { return memory_; }
  const Staging& staging() const { return staging_; }

  size_t repacked_bytes(const Weight& weight) const override;
  void repack(const Weight& weight, std::byte* memory) override;
  void embed(const Weight& table, std::span<const Token> tokens, float scale, Mat out) override;
  void matmul(ConstMat x, std::span<const Product> products, Precision precision) override;
  void rms_norm(ConstMat x, const float* weight, float eps, Mat out) override;
  void layer_norm(ConstMat x, const float* weight, const float* bias, float eps, Mat out) override;
  void rope(Mat x, int head_dim, RopeLayout layout, ConstMat cos, ConstMat sin) override;
  void gated(Activation activation, Mat gate, ConstMat up) override;
  void add(Mat x, ConstMat y) override;
  void softcap(float cap, Mat x) override;
  void clamp(float limit, Mat x) override;
  void attend(const AttendParams& params, std::span<const AttendTask> tasks) override;
  void attention_mass(const AttendParams& params, MassOf what,
                      std::span<const MassTask> tasks) override;
  ReadPath read_path(const SideView& side, Precision precision) const override;
  void dot_halves(const HalfDots& job) const override { host_->dot_halves(job); }
  int64_t add_gram(const HalfGram& job) const override { return host_->add_gram(job); }
  int64_t seal(std::span<const SealJob> jobs) override;

 private:
  // Every operation begins with one of these.
  Operands& on_device();
  Backend& on_host();
  void fetch_rows(const SideView& side);
  DeviceWeight find_weight(const Weight& weight);
  // cuda_backend_cache.cpp
  bool can_attend(const AttendParams& params, const AttendTask& task) const;
  void attend_on_device(const AttendParams& params, const AttendTask& task);
  bool can_weigh(const AttendParams& params, const MassTask& task) const;
  void weigh_on_device(const AttendParams& params, MassOf what, const MassTask& task);
  bool can_seal(const SealJob& job) const;
  // Has rows projected before they are coded.
  void add_projection(const SealJob& job, EncodeJob* to);
  AnchorAngles find_angles(const SealJob& job);
  // Of `jobs` the chosen ones; as seal().
  int64_t seal_on_device(std::span<const SealJob> jobs, std::span<const int64_t> chosen);
  int64_t seal_on_host(std::span<const SealJob> jobs, std::span<const int64_t> chosen);

  std::unique_ptr<Backend> host_;
  Device device_;
  TwinMemory memory_;
  Operands operands_;
  Rotations rotations_;
  Staging staging_;
  HeadTables heads_;
  std::string name_;
  bool was_on_host_ = false;
  // Of the seals of a pass: whether rows were not finite, in device memory, and their layers.
  DeviceArray<int32_t> flags_;
  std::vector<int32_t> flagged_layers_;
  // Of one operation; kept for their memory.
  std::vector<std::byte> packed_;
  std::vector<EncodeJob> encode_jobs_;
  std::vector<ProjectJob> project_jobs_;
  std::vector<int64_t> chosen_;
  std::vector<SealJob> others_;
  std::vector<int32_t> failed_;
  std::vector<float> mass_;
  std::vector<HeadView> keys_;
};

}  // namespace kve::cuda
