import numpy as np
import pytest
import torch

from deim_mmdet.ops import deformable_attention


def slow_deformable_attention(value, shapes, locations, weights, num_points):
    """Eq. 3 of Deformable DETR, one sample after another."""
    batch, _, heads, channels = value.shape
    out = np.zeros((batch, locations.shape[1], heads, channels))
    level_of_point = np.repeat(np.arange(len(shapes)), num_points)
    starts = np.cumsum([0, *(h * w for h, w in shapes)])
    for b, q, head, point in np.ndindex(*locations.shape[:4]):
        level = level_of_point[point]
        height, width = shapes[level]
        x, y = locations[b, q, head, point] * (width, height) - 0.5
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    sample = value[b, starts[level] + row * width + column, head]
                    out[b, q, head] += weights[b, q, head, point] * share * sample
    return out.reshape(batch, -1, heads * channels)


def random_inputs(batch, heads, channels, shapes, num_points, queries=5):
    tokens = sum(h * w for h, w in shapes)
    value = torch.randn(batch, tokens, heads, channels, dtype=torch.float64)
    # A share of the points lies outside, and some exactly on the border.
    locations = torch.rand(batch, queries, heads, sum(num_points), 2, dtype=torch.float64)
    locations = locations * 1.6 - 0.3
    locations[:, 0, 0, 0] = 0
    locations[:, 0, 0, 1] = 1
    weights = torch.rand(batch, queries, heads, sum(num_points), dtype=torch.float64)
    return value, locations, weights


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('channels', [1, 16])
@pytest.mark.parametrize(
    ('shapes', 'num_points'), [([(5, 7), (3, 2), (1, 1)], [3, 6, 3]), ([(4, 4), (2, 3)], [6, 6])]
)
def test_equals_slow_sampling(batch, channels, shapes, num_points):
    value, locations, weights = random_inputs(batch, 2, channels, shapes, num_points)
    out = deformable_attention(value, shapes, locations, weights, num_points)
    expected = slow_deformable_attention(
        value.numpy(), shapes, locations.numpy(), weights.numpy(), num_points
    )
    np.testing.assert_allclose(out, expected, atol=1e-10)


def test_gradients_equal_finite_differences():
    shapes, num_points = [(3, 4), (1, 1)], [2, 1]
    inputs = random_inputs(1, 2, 2, shapes, num_points, queries=2)
    # Bilinear sampling has kinks on the pixel grid: keep away from it.
    inputs[1].copy_((inputs[1] * 12).floor() / 12 + 0.031)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(
        lambda *args: deformable_attention(args[0], shapes, *args[1:], num_points), inputs
    )


def test_discrete_sampling_takes_one_pixel():
    """The pixel at floor(x · W + 0.5), clamped to the level; weights and values get gradients."""
    shapes, num_points = [(5, 7), (1, 1)], [3, 1]
    value, locations, weights = random_inputs(2, 2, 3, shapes, num_points)
    expected = np.zeros((2, 5, 2, 3))
    for b, q, head, point in np.ndindex(2, 5, 2, 4):
        start, (height, width) = (0, shapes[0]) if point < 3 else (35, shapes[1])
        x, y = (locations[b, q, head, point] * torch.tensor([width, height]) + 0.5).floor().int()
        x, y = min(max(int(x), 0), width - 1), min(max(int(y), 0), height - 1)
        sample = value[b, start + y * width + x, head]
        expected[b, q, head] += (weights[b, q, head, point] * sample).numpy()
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    out = deformable_attention(value, shapes, locations, weights, num_points, method='discrete')
    np.testing.assert_allclose(out.detach(), expected.reshape(2, 5, 6), atol=1e-12)
    out.square().sum().backward()
    assert locations.grad is None
    assert all(tensor.grad.abs().sum() > 0 for tensor in inputs if tensor is not locations)


def test_unknown_method_is_refused():
    inputs = random_inputs(1, 1, 4, [(3, 3)], [2])
    with pytest.raises(ValueError, match=r"one of .*'discrete'.*got 'cubic'"):
        deformable_attention(inputs[0], [(3, 3)], *inputs[1:], [2], method='cubic')


@pytest.mark.parametrize('num_points', [[2, 2], [3], [1, 1, 1]])
def test_numbers_that_disagree_are_refused(num_points):
    value, locations, weights = random_inputs(1, 1, 4, [(3, 3), (2, 2)], [2, 1])
    with pytest.raises(ValueError, match='num_points'):
        deformable_attention(value, [(3, 3), (2, 2)], locations, weights, num_points)
    with pytest.raises(ValueError, match='tokens'):
        deformable_attention(value, [(3, 3), (2, 1)], locations, weights, [2, 1])
