"""Query selection against the computation of all tokens."""

from deim_mmdet.models.layers.query_selection import QuerySelection

import pytest
import torch
from torch.nn.functional import layer_norm, linear, silu

# The first and last columns of the first level lie too near to the edges.
SHAPES = [(2, 60), (3, 2)]
TOKENS = 126


def anchors_of_all() -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes before the sigmoid (126, 4), infinite where invalid, and which are valid (126, 1)."""
    boxes, valid = [], []
    for level, (height, width) in enumerate(SHAPES):
        for row in range(height):
            for column in range(width):
                side = 0.05 * 2**level
                box = [(column + 0.5) / width, (row + 0.5) / height, side, side]
                valid.append([min(box) > 0.01 and max(box) < 0.99])
                boxes.append(box if valid[-1][0] else [1.0] * 4)
    boxes = torch.tensor(boxes, dtype=torch.double)
    return (boxes / (1 - boxes)).log(), torch.tensor(valid)


def select_among_all(selection: QuerySelection, memory: torch.Tensor) -> tuple:
    """Content, scores and box logits, image by image, every token through every layer."""
    weights = dict(selection.named_parameters())

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, weights[f'{name}.weight'], weights[f'{name}.bias'])

    anchors, valid = anchors_of_all()
    assert 0 < (~valid).sum() < TOKENS
    tokens = layer('proj', torch.where(valid, memory, 0.0))
    tokens = layer_norm(tokens, (16,), weights['norm.weight'], weights['norm.bias'])
    scores = layer('score', tokens)
    hidden = silu(layer('box.layers.1', silu(layer('box.layers.0', tokens))))
    boxes = layer('box.layers.2', hidden) + anchors
    chosen = [image.amax(-1).argsort(descending=True)[: selection.num_queries] for image in scores]
    return tuple(
        torch.stack([image[rows] for image, rows in zip(tensor, chosen, strict=True)])
        for tensor in (tokens, scores, boxes)
    )


@pytest.mark.parametrize('count', [7, TOKENS - 2], ids=['few', 'invalid ones too'])
def test_values_and_gradients_are_those_of_all_tokens(count):
    selection = QuerySelection(num_classes=3, embed_dims=16, num_queries=count, act='SiLU').double()
    for parameter in selection.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    memory = torch.randn(2, TOKENS, 16, dtype=torch.double, requires_grad=True)
    inputs = [memory, *selection.parameters()]
    expected = select_among_all(selection, memory)
    got = selection(memory, SHAPES)
    with torch.no_grad():
        evaluated = selection(memory, SHAPES)
    for ours, in_evaluation, theirs in zip(got, evaluated, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(in_evaluation, theirs)
    for ours, theirs in zip(
        *(
            torch.autograd.grad(sum(part.sigmoid().square().sum() for part in parts), inputs)
            for parts in (got, expected)
        ),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_every_weight_is_trained_under_autocast():
    selection = QuerySelection(num_classes=3, embed_dims=16, num_queries=7, act='SiLU')
    torch.nn.init.normal_(selection.box.layers[-1].weight)
    with torch.autocast('cpu', torch.bfloat16):
        content, scores, logits = selection(torch.randn(2, TOKENS, 16), SHAPES)
    (content.sum() + scores.square().sum() + logits.square().sum()).backward()
    for name, parameter in selection.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
