// Attention over two sets of rows as one.
#pragma once

#include "base/span.h"
#include "base/thread_pool.h"

namespace kve {

// `out` [n, n_heads * value_dim] and `sums` [n, n_heads] (AttendTask::log_sums) are those of one
// set of rows, `other` and `other_sums` those of another; the first become those of one softmax
// over both: outputs are means, weighted by their sums.
void merge_attention(ThreadPool& pool, int n_heads, ConstMat other, const float* other_sums,
                     Mat out, float* sums);

}  // namespace kve
