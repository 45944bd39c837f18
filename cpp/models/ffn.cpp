#include "models/decoder.h"

namespace kve {

void ffn(const LayerContext& context, const Activations& a) {
  const FfnSpec& spec = context.layer_spec.ffn;
  const FfnWeights& w = context.weights.ffn;
  const Mat gate(a.gate.data, a.gate.rows, spec.d_ff);
  const Mat up(a.up.data, a.up.rows, spec.d_ff);
  const auto bias = [](const Vector& vector) { return vector.empty() ? nullptr : vector.data(); };

  const Product out{&w.down, a.block, bias(w.down_bias)};
  if (spec.gated) {
    const Product in[] = {{&w.gate, gate, bias(w.gate_bias)}, {&w.up, up, bias(w.up_bias)}};
    const GatedBlock block{spec.activation, in[0], in[1], out};
    const PrecisionPlan& precision = context.precision;
    if (context.backend.fused_block(a.normed, block, precision.ffn_in, precision.ffn_out)) return;
    context.backend.matmul(a.normed, in, precision.ffn_in);
  } else {
    // A gate of what would be `up`.
    const Product in{&w.up, gate, bias(w.up_bias)};
    context.backend.matmul(a.normed, {&in, 1}, context.precision.ffn_in);
  }
  context.backend.gated(spec.activation, gate, spec.gated ? up : Mat());
  context.backend.matmul(gate, {&out, 1}, context.precision.ffn_out);
}

}  // namespace kve
