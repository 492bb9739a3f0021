// The operators' schemas, and their CPU implementation.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu_kernels.h"
#include "operator.h"

#define DEIM_TEXT_OF(name) #name
#define DEIM_TEXT(name) DEIM_TEXT_OF(name)

// Looked for in the file before it is loaded: see ops/library.py.
extern "C" __attribute__((used, visibility("default"))) const char deim_mmdet_build_tag[] =
    "deim_mmdet operators " DEIM_TEXT(DEIM_BUILD_TAG);

namespace deim {
namespace {

// Fewer samples than this are not worth another thread.
constexpr int64_t kSamplesPerThread = 2048;

at::Tensor forward(
    const at::Tensor& value,
    const at::Tensor& locations,
    const at::Tensor& attention,
    at::IntArrayRef spatial_shapes,
    at::IntArrayRef num_points,
    bool nearest) {
  const Inputs inputs = prepare(value, locations, attention, spatial_shapes, num_points, nearest);
  const Problem& problem = inputs.problem;
  at::Tensor out = empty_output(inputs);
  const ForwardTensors tensors{
      inputs.value.const_data_ptr(),
      inputs.locations.const_data_ptr(),
      inputs.attention.const_data_ptr(),
      out.mutable_data_ptr()};
  const int64_t grain = std::max<int64_t>(1, kSamplesPerThread / std::max(1, problem.points));
  at::parallel_for(0, rows_of(problem), grain, [&](int64_t begin, int64_t end) {
    forward_on_cpu(problem, inputs.type, tensors, begin, end);
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out,
    const at::Tensor& value,
    const at::Tensor& locations,
    const at::Tensor& attention,
    at::IntArrayRef spatial_shapes,
    at::IntArrayRef num_points,
    bool nearest) {
  const Inputs inputs = prepare(value, locations, attention, spatial_shapes, num_points, nearest);
  const Problem& problem = inputs.problem;
  const at::Tensor gradient = prepare_gradient(grad_out, inputs);
  at::Tensor grad_value = at::empty(inputs.value.sizes(), inputs.options());
  at::Tensor grad_locations = empty_location_gradient(inputs);
  at::Tensor grad_attention = at::empty(inputs.attention.sizes(), inputs.options());
  const BackwardTensors tensors{
      inputs.value.const_data_ptr(),
      inputs.locations.const_data_ptr(),
      inputs.attention.const_data_ptr(),
      gradient.const_data_ptr(),
      grad_value.mutable_data_ptr(),
      nearest ? nullptr : grad_locations.mutable_data_ptr(),
      grad_attention.mutable_data_ptr()};
  at::parallel_for(0, problem.batch * problem.heads, 1, [&](int64_t begin, int64_t end) {
    at::Tensor scratch = at::empty({problem.tokens * problem.channels}, inputs.options());
    backward_on_cpu(problem, inputs.type, tensors, scratch.mutable_data_ptr(), begin, end);
  });
  return {converted(grad_value, value.scalar_type()), grad_locations, grad_attention};
}

}  // namespace
}  // namespace deim

TORCH_LIBRARY(deim_mmdet, library) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  library.def(
      "deformable_attention(Tensor value, Tensor locations, Tensor attention, "
      "SymInt[] spatial_shapes, int[] num_points, bool nearest) -> Tensor",
      tags);
  library.def(
      "deformable_attention_backward(Tensor grad_out, Tensor value, Tensor locations, "
      "Tensor attention, SymInt[] spatial_shapes, int[] num_points, bool nearest) "
      "-> (Tensor, Tensor, Tensor)",
      tags);
}

TORCH_LIBRARY_IMPL(deim_mmdet, CPU, library) {
  library.impl("deformable_attention", &deim::forward);
  library.impl("deformable_attention_backward", &deim::backward);
}
