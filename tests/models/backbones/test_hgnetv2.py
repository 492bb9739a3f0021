"""The pooling of the stem: what it keeps for the backward pass, and that nothing else changes."""

from deim_mmdet.models.backbones.hgnetv2 import HGNetv2, largest_of_four

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_maxima_and_their_gradients_are_those_of_the_plain_pooling(dtype, memory_format):
    # Whole numbers: most maxima are shared by several pixels, of which one has the gradient.
    features = torch.randint(0, 3, (2, 4, 9, 7)).to(dtype).contiguous(memory_format=memory_format)
    results = []
    for pool in (
        lambda x: F.max_pool2d(x, 2, 1),
        lambda x: largest_of_four(x, with_cp=True),
        lambda x: largest_of_four(x, with_cp=False),
    ):
        x = features.clone().requires_grad_()
        out = pool(x * 1)
        gradient = torch.arange(out.numel(), dtype=dtype).view(out.shape)
        results.append((out, *torch.autograd.grad(out, x, gradient)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_gradients_by_functions_of_torch():
    x = torch.rand(1, 2, 4, 4)
    gradient = torch.func.grad(lambda x: largest_of_four(x, with_cp=True).square().sum())(x)
    expected = x.clone().requires_grad_()
    F.max_pool2d(expected, 2, 1).square().sum().backward()
    torch.testing.assert_close(gradient, expected.grad)


@pytest.mark.parametrize('with_cp', [True, False])
def test_positions_of_the_maxima_are_kept_only_where_it_is_told(with_cp):
    stem = HGNetv2('B0', with_cp=with_cp).stem
    node = stem.branches(torch.rand(1, 3, 32, 32))[0].grad_fn
    # What is kept is the same tensor each time.
    once, again = node._saved_result1, node._saved_result1
    assert torch.equal(once, again)
    assert (once.data_ptr() != again.data_ptr()) == with_cp
