// The operators' implementation for GPUs.
#include <ATen/Context.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda_kernels.h"
#include "operator.h"

namespace deim {
namespace {

void check_channels(const Problem& problem) {
  TORCH_CHECK(
      problem.channels >= 1 && problem.channels <= kThreads,
      "deformable_attention: a head has ", std::to_string(problem.channels),
      " channels, on a GPU 1 to ", std::to_string(kThreads), " are possible");
}

// Whether kernels compiled for this GPU add four floats at once.
bool adds_vectors(int device) {
  int major = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return DEIM_ADDS_VECTORS && major >= 9;
}

at::Tensor forward(
    const at::Tensor& value,
    const at::Tensor& locations,
    const at::Tensor& attention,
    at::IntArrayRef spatial_shapes,
    at::IntArrayRef num_points,
    bool nearest) {
  const c10::cuda::CUDAGuard guard(value.device());
  const Inputs inputs = prepare(value, locations, attention, spatial_shapes, num_points, nearest);
  check_channels(inputs.problem);
  at::Tensor out = empty_output(inputs);
  C10_CUDA_CHECK(launch_forward(
      inputs.problem,
      inputs.type,
      inputs.value.const_data_ptr(),
      inputs.locations.const_data_ptr(),
      inputs.attention.const_data_ptr(),
      out.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream()));
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
  // Atomic additions come in any order.
  at::globalContext().alertNotDeterministic("deformable_attention_backward of deim_mmdet");
  const c10::cuda::CUDAGuard guard(value.device());
  const Inputs inputs = prepare(value, locations, attention, spatial_shapes, num_points, nearest);
  check_channels(inputs.problem);
  const at::Tensor gradient = prepare_gradient(grad_out, inputs);
  at::Tensor grad_value = at::zeros(inputs.value.sizes(), inputs.options());
  at::Tensor grad_locations = empty_location_gradient(inputs);
  at::Tensor grad_attention = at::empty(inputs.attention.sizes(), inputs.options());
  C10_CUDA_CHECK(launch_backward(
      inputs.problem,
      inputs.type,
      adds_vectors(value.get_device()),
      inputs.value.const_data_ptr(),
      inputs.locations.const_data_ptr(),
      inputs.attention.const_data_ptr(),
      gradient.const_data_ptr(),
      grad_value.mutable_data_ptr(),
      grad_locations.mutable_data_ptr(),
      grad_attention.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream()));
  return {converted(grad_value, value.scalar_type()), grad_locations, grad_attention};
}

}  // namespace
}  // namespace deim

TORCH_LIBRARY_IMPL(deim_mmdet, CUDA, library) {
  library.impl("deformable_attention", &deim::forward);
  library.impl("deformable_attention_backward", &deim::backward);
}
