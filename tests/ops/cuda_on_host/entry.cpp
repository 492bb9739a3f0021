// What the tests call: plain functions for ctypes.
#include "cuda_kernels.h"

namespace {

// sizes: batch, queries, heads, channels, levels, nearest; then height, width and points of each
// level.
deim::Problem problem_of(const int* sizes) {
  deim::Problem problem{};
  problem.batch = sizes[0];
  problem.queries = sizes[1];
  problem.heads = sizes[2];
  problem.channels = sizes[3];
  problem.levels = sizes[4];
  problem.nearest = sizes[5];
  for (int i = 0; i < problem.levels; ++i) {
    const int* level = sizes + 6 + 3 * i;
    problem.level[i] = {level[0], level[1], int(problem.tokens), problem.points};
    problem.tokens += level[0] * level[1];
    problem.points += level[2];
  }
  return problem;
}

}  // namespace

extern "C" int run_forward(
    const int* sizes,
    int type,
    int reversed,
    const void* value,
    const void* locations,
    const void* attention,
    void* out) {
  cuda_on_host::reversed = reversed;
  return deim::launch_forward(
      problem_of(sizes), deim::ValueType(type), value, locations, attention, out, nullptr);
}

extern "C" int run_backward(
    const int* sizes,
    int type,
    int reversed,
    int adds_vectors,
    const void* value,
    const void* locations,
    const void* attention,
    const void* grad_out,
    void* grad_value,
    void* grad_locations,
    void* grad_attention) {
  cuda_on_host::reversed = reversed;
  return deim::launch_backward(
      problem_of(sizes), deim::ValueType(type), adds_vectors, value, locations, attention, grad_out,
      grad_value, grad_locations, grad_attention, nullptr);
}

// Counted since the last call.
extern "C" long long atomic_additions() {
  const long long count = cuda_on_host::atomic_additions;
  cuda_on_host::atomic_additions = 0;
  return count;
}
