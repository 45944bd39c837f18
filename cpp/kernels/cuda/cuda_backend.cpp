#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/elementwise.h"

namespace kve::cuda {
namespace {

constexpr size_t kPackedAlignment = 64;
constexpr int64_t kPackedTogether = 64 << 20;  // bytes of a weight
constexpr size_t kMostFlags = 1024;            // seals of a pass that are not waited for

size_t padded(size_t bytes) {
  return (bytes + kPackedAlignment - 1) / kPackedAlignment * kPackedAlignment;
}

Weight rows_of(const Weight& weight, int64_t first, int64_t n) {
  Weight part = weight;
  part.rows = n;
  part.data += static_cast<size_t>(first) * weight.row_bytes;
  return part;
}

}  // namespace

CudaBackend::CudaBackend(std::unique_ptr<Backend> host, size_t cache_limit)
    : host_(std::move(host)),
      memory_(device_, Staging::limit_of_pages(cache_limit)),
      operands_(device_, memory_),
      rotations_(device_),
      staging_(device_, memory_, Staging::buffer_bytes(cache_limit)),
      heads_(device_, memory_, operands_, rotations_, staging_),
      name_("cuda (" + device_.name() + ")"),
      flags_(device_, kMostFlags) {}

void CudaBackend::begin_pass() {
  memory_.rearrange();
  device_.begin_pass();
  staging_.begin_pass();
  flagged_layers_.clear();
  device_.zero(flags_.data(), flags_.size() * sizeof(int32_t));
}

int32_t CudaBackend::end_pass() {
  if (!device_.in_pass()) return -1;
  failed_.resize(flagged_layers_.size());
  if (!failed_.empty()) {
    device_.download(failed_.data(), flags_.data(), failed_.size() * sizeof(int32_t));
  }
  device_.end_pass();
  const auto first = std::ranges::find(failed_, 1);
  return first == failed_.end() ? -1
                                : flagged_layers_[static_cast<size_t>(first - failed_.begin())];
}

Operands& CudaBackend::on_device() {
  was_on_host_ = false;
  operands_.begin();
  return operands_;
}

Backend& CudaBackend::on_host() {
  was_on_host_ = true;
  return *host_;
}

size_t CudaBackend::repacked_bytes(const Weight& weight) const {
  return padded(packed_bytes(weight));
}

// In parts, which several threads pack.
void CudaBackend::repack(const Weight& weight, std::byte* memory) {
  const auto row_bytes = static_cast<int64_t>(packed_bytes(rows_of(weight, 0, 1)));
  const int64_t step = std::clamp<int64_t>(kPackedTogether / row_bytes, 1, weight.rows);
  packed_.resize(static_cast<size_t>(step * row_bytes));
  for (int64_t first = 0; first < weight.rows; first += step) {
    const int64_t n = std::min(step, weight.rows - first);
    const int64_t n_tasks = std::min<int64_t>(n, 4 * host_->pool().size());
    host_->pool().parallel(n_tasks, [&](int64_t i) {
      const int64_t begin = n * i / n_tasks;
      const int64_t end = n * (i + 1) / n_tasks;
      pack_weight(rows_of(weight, first + begin, end - begin), packed_.data() + begin * row_bytes);
    });
    device_.upload(memory_.find(memory).at(memory + first * row_bytes), packed_.data(),
                   static_cast<size_t>(n * row_bytes));
  }
}

void CudaBackend::embed(const Weight& table, std::span<const Token> tokens, float scale, Mat out) {
  // The rows of a few tokens: the table stays where the file is.
  on_host().embed(table, tokens, scale, out);
  send(out);
}

DeviceWeight CudaBackend::find_weight(const Weight& weight) {
  const WeightType type = packed_type(weight.type);
  if (weight.repacked != nullptr) {
    return {type, weight.rows, weight.cols, operands_.find(weight.repacked), 0};
  }
  const std::byte* kept = operands_.find(weight.data);
  if (kept != nullptr && type == weight.type) {
    const DeviceWeight found{type, weight.rows, weight.cols, kept,
                             static_cast<int64_t>(weight.row_bytes)};
    if (found.is_float()) return found;
  }
  packed_.resize(packed_bytes(weight));
  pack_weight(weight, packed_.data());
  return {type, weight.rows, weight.cols, operands_.send(std::span<const std::byte>(packed_)), 0};
}

void CudaBackend::matmul(ConstMat x, std::span<const Product> products, Precision precision) {
  Operands& at = on_device();
  const ConstMat inputs = at.read(x);
  CodedInputs coded;
  for (const Product& product : products) {
    const DeviceWeight weight = find_weight(*product.weight);
    const float* bias = at.read(product.bias, static_cast<size_t>(weight.rows));
    const Mat y = at.write(product.y);
    if (weight.is_float() || precision == Precision::exact) {
      cuda::matmul(inputs, weight, bias, y);
      continue;
    }
    if (coded.codes == nullptr) {
      coded = code_inputs(inputs, precision, at.scratch(coded_inputs_bytes(x.rows, x.cols)));
    }
    cuda::matmul(coded, weight, bias, y);
  }
  at.finish();
}

void CudaBackend::rms_norm(ConstMat x, const float* weight, float eps, Mat out) {
  Operands& at = on_device();
  cuda::rms_norm(at.read(x), at.read(weight, static_cast<size_t>(x.cols)), eps, at.write(out));
  at.finish();
}

void CudaBackend::layer_norm(ConstMat x, const float* weight, const float* bias, float eps,
                             Mat out) {
  Operands& at = on_device();
  const auto n = static_cast<size_t>(x.cols);
  cuda::layer_norm(at.read(x), at.read(weight, n), at.read(bias, n), eps, at.write(out));
  at.finish();
}

void CudaBackend::rope(Mat x, int head_dim, RopeLayout layout, ConstMat cos, ConstMat sin) {
  Operands& at = on_device();
  cuda::rope(at.update(x), head_dim, layout, at.read(cos), at.read(sin));
  at.finish();
}

void CudaBackend::gated(Activation activation, Mat gate, ConstMat up) {
  Operands& at = on_device();
  cuda::gated(activation, at.update(gate), at.read(up));
  at.finish();
}

void CudaBackend::add(Mat x, ConstMat y) {
  Operands& at = on_device();
  cuda::add(at.update(x), at.read(y));
  at.finish();
}

void CudaBackend::softcap(float cap, Mat x) {
  Operands& at = on_device();
  cuda::softcap(cap, at.update(x));
  at.finish();
}

void CudaBackend::clamp(float limit, Mat x) {
  Operands& at = on_device();
  cuda::clamp(limit, at.update(x));
  at.finish();
}

}  // namespace kve::cuda
