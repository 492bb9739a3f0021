// The CPU kernels, for one thread's share of the work each.
#pragma once

#include "core.h"

namespace deim {

struct ForwardTensors {
  const void* value;
  const void* locations;
  const void* attention;
  void* out;
};

struct BackwardTensors {
  const void* value;
  const void* locations;
  const void* attention;
  const void* grad_out;
  void* grad_value;
  // Null for the nearest method, which gives locations no gradient.
  void* grad_locations;
  void* grad_attention;
};

// Rows [begin, end).
void forward_on_cpu(
    const Problem& problem,
    ValueType type,
    const ForwardTensors& tensors,
    int64_t begin,
    int64_t end);

// Heads [begin, end) of all batch · heads. A head's share of value's gradient belongs to it alone:
// no two threads write to one place, and sums are formed in one order whatever their number.
// `scratch` holds tokens · channels numbers of the compute type.
void backward_on_cpu(
    const Problem& problem,
    ValueType type,
    const BackwardTensors& tensors,
    void* scratch,
    int64_t begin,
    int64_t end);

}  // namespace deim
