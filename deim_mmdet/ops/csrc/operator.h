// From tensors to kernels: what the operators of all devices have in common.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <string>
#include <tuple>

#include "core.h"

namespace deim {

struct Inputs {
  at::Tensor value;
  at::Tensor locations;
  at::Tensor attention;
  Problem problem;
  ValueType type;

  at::TensorOptions options() const { return locations.options(); }
};

inline ValueType value_type(const at::Tensor& value) {
  switch (value.scalar_type()) {
    case at::kFloat:
      return ValueType::kFloat;
    case at::kDouble:
      return ValueType::kDouble;
    case at::kHalf:
      return ValueType::kHalf;
    case at::kBFloat16:
      return ValueType::kBFloat16;
    default:
      TORCH_CHECK(false, "deformable_attention: no kernel for a value of ", value.scalar_type());
  }
}

// Numbers go into messages as text that std::to_string made. Given to TORCH_CHECK, they would be
// formatted by a stream of this library's own. On one machine that seems to have ended the process,
// perhaps since torch had been compiled with another C++ library.
inline std::string text(at::IntArrayRef sizes) {
  std::string joined;
  for (const int64_t size : sizes) {
    joined += (joined.empty() ? "" : ", ") + std::to_string(size);
  }
  return "(" + joined + ")";
}

// A conversion that changes nothing would cost a call of torch all the same.
inline at::Tensor converted(const at::Tensor& tensor, at::ScalarType type) {
  return tensor.scalar_type() == type ? tensor : tensor.to(type);
}

// Everything that a kernel takes for granted is checked here, contiguous tensors included.
inline Inputs prepare(
    const at::Tensor& value,
    const at::Tensor& locations,
    const at::Tensor& attention,
    at::IntArrayRef spatial_shapes,
    at::IntArrayRef num_points,
    bool nearest) {
  const ValueType type = value_type(value);
  const auto compute_type = type == ValueType::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(
      locations.scalar_type() == compute_type && attention.scalar_type() == compute_type,
      "deformable_attention: locations and attention weights must be ", compute_type,
      " for a value of ", value.scalar_type());
  TORCH_CHECK(
      locations.device() == value.device() && attention.device() == value.device(),
      "deformable_attention: all tensors must be on one device");
  TORCH_CHECK(
      value.dim() == 4 && locations.dim() == 5 && locations.size(4) == 2 &&
          attention.sizes() == locations.sizes().slice(0, 4) &&
          locations.size(0) == value.size(0) && locations.size(2) == value.size(2),
      "deformable_attention: shapes disagree: value ", text(value.sizes()), ", locations ",
      text(locations.sizes()), ", attention weights ", text(attention.sizes()));
  const auto levels = num_points.size();
  TORCH_CHECK(
      levels >= 1 && levels <= kMaxLevels && spatial_shapes.size() == 2 * levels,
      "deformable_attention: needs 1 to ", std::to_string(kMaxLevels),
      " levels, with height, width and number of points each");
  Problem problem{};
  problem.batch = value.size(0);
  problem.queries = locations.size(1);
  problem.heads = int(value.size(2));
  problem.channels = int(value.size(3));
  problem.levels = int(levels);
  problem.nearest = nearest;
  int64_t tokens = 0, points = 0;
  for (size_t i = 0; i < levels; ++i) {
    const int64_t height = spatial_shapes[2 * i], width = spatial_shapes[2 * i + 1];
    TORCH_CHECK(
        height > 0 && width > 0 && num_points[i] >= 0,
        "deformable_attention: height, width and points of level ", std::to_string(i), " are ",
        text({height, width, num_points[i]}));
    problem.level[i] = {int(height), int(width), int(tokens), int(points)};
    tokens += height * width;
    points += num_points[i];
  }
  TORCH_CHECK(
      tokens == value.size(1) && tokens <= INT32_MAX && points == locations.size(3),
      "deformable_attention: tokens and points are ", text({value.size(1), locations.size(3)}),
      ", but the levels have ", text({tokens, points}));
  problem.tokens = tokens;
  problem.points = int(points);
  return {value.contiguous(), locations.contiguous(), attention.contiguous(), problem, type};
}

// The gradient of the output, in the kernels' type and order.
inline at::Tensor prepare_gradient(const at::Tensor& grad_out, const Inputs& inputs) {
  const Problem& problem = inputs.problem;
  TORCH_CHECK(
      grad_out.numel() == rows_of(problem) * problem.channels &&
          grad_out.device() == inputs.value.device(),
      "deformable_attention: the gradient ", text(grad_out.sizes()),
      " doesn't belong to the output");
  return converted(grad_out, inputs.locations.scalar_type()).contiguous();
}

inline at::Tensor empty_output(const Inputs& inputs) {
  const Problem& problem = inputs.problem;
  return at::empty(
      {problem.batch, problem.queries, int64_t(problem.heads) * problem.channels},
      inputs.options());
}

// Of no element for the nearest method, which gives locations no gradient.
inline at::Tensor empty_location_gradient(const Inputs& inputs) {
  return inputs.problem.nearest ? at::empty({0}, inputs.options())
                                : at::empty(inputs.locations.sizes(), inputs.options());
}

}  // namespace deim
