// The operators' derivatives, for all devices.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

namespace deim {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// Finds an operator by its name; `Signature` is that of its schema.
template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensor forward_of_device(
    const Tensor& value,
    const Tensor& locations,
    const Tensor& attention,
    c10::SymIntArrayRef spatial_shapes,
    at::IntArrayRef num_points,
    bool nearest) {
  static const auto op = find<decltype(forward_of_device)>("deim_mmdet::deformable_attention");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(value, locations, attention, spatial_shapes, num_points, nearest);
}

// By the dispatcher, autograd included, so that a second derivative is refused and not wrong.
Gradients backward_of_any(
    const Tensor& grad_out,
    const Tensor& value,
    const Tensor& locations,
    const Tensor& attention,
    c10::SymIntArrayRef spatial_shapes,
    at::IntArrayRef num_points,
    bool nearest) {
  static const auto op =
      find<decltype(backward_of_any)>("deim_mmdet::deformable_attention_backward");
  return op.call(grad_out, value, locations, attention, spatial_shapes, num_points, nearest);
}

// Whether autograd has to know of a call, which is faster without it.
template <class... Tensors>
bool is_differentiated(const Tensors&... tensors) {
  return (c10::GradMode::is_enabled() && (tensors.requires_grad() || ...)) ||
      (tensors._fw_grad(/*level=*/0).defined() || ...);
}

struct DeformableAttention : torch::autograd::Function<DeformableAttention> {
  static constexpr bool is_traceable = true;

  static Tensor forward(
      AutogradContext* context,
      const Tensor& value,
      const Tensor& locations,
      const Tensor& attention,
      c10::SymIntArrayRef spatial_shapes,
      at::IntArrayRef num_points,
      bool nearest) {
    context->save_for_backward({value, locations, attention});
    context->saved_data["spatial_shapes"] = spatial_shapes;
    context->saved_data["num_points"] = num_points;
    context->saved_data["nearest"] = nearest;
    return forward_of_device(value, locations, attention, spatial_shapes, num_points, nearest);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad_out) {
    const variable_list saved = context->get_saved_variables();
    const bool nearest = context->saved_data["nearest"].toBool();
    auto [grad_value, grad_locations, grad_attention] = backward_of_any(
        grad_out[0],
        saved[0],
        saved[1],
        saved[2],
        context->saved_data["spatial_shapes"].toSymIntVector(),
        context->saved_data["num_points"].toIntVector(),
        nearest);
    if (nearest) grad_locations = Tensor();
    return {grad_value, grad_locations, grad_attention, Tensor(), Tensor(), Tensor()};
  }
};

// The first derivative, which has none itself.
struct Refusing : torch::autograd::Function<Refusing> {
  static variable_list forward(
      AutogradContext* /*context*/,
      const Tensor& grad_out,
      const Tensor& value,
      const Tensor& locations,
      const Tensor& attention,
      c10::SymIntArrayRef spatial_shapes,
      at::IntArrayRef num_points,
      bool nearest) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [grad_value, grad_locations, grad_attention] = backward_of_any(
        grad_out, value, locations, attention, spatial_shapes, num_points, nearest);
    return {grad_value, grad_locations, grad_attention};
  }

  static variable_list backward(AutogradContext* /*context*/, const variable_list& /*gradients*/) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false,
        "deformable_attention has no second derivative: compute it within "
        "deim_mmdet.ops.pure_pytorch()");
  }
};

Tensor forward(
    const Tensor& value,
    const Tensor& locations,
    const Tensor& attention,
    c10::SymIntArrayRef spatial_shapes,
    at::IntArrayRef num_points,
    bool nearest) {
  return is_differentiated(value, locations, attention)
      ? DeformableAttention::apply(
            value, locations, attention, spatial_shapes, num_points, nearest)
      : forward_of_device(value, locations, attention, spatial_shapes, num_points, nearest);
}

Gradients backward(
    const Tensor& grad_out,
    const Tensor& value,
    const Tensor& locations,
    const Tensor& attention,
    c10::SymIntArrayRef spatial_shapes,
    at::IntArrayRef num_points,
    bool nearest) {
  if (!is_differentiated(grad_out, value, locations, attention)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return backward_of_any(
        grad_out, value, locations, attention, spatial_shapes, num_points, nearest);
  }
  const variable_list gradients = Refusing::apply(
      grad_out, value, locations, attention, spatial_shapes, num_points, nearest);
  return {gradients[0], gradients[1], gradients[2]};
}

}  // namespace
}  // namespace deim

TORCH_LIBRARY_IMPL(deim_mmdet, Autograd, library) {
  library.impl("deformable_attention", &deim::forward);
  library.impl("deformable_attention_backward", &deim::backward);
}
