"""Query selection against the computation of all tokens."""

from deim_mmdet.models.layers.query_selection import QuerySelection, make_anchors

import torch

SHAPES = [(6, 5), (3, 2)]


def select_among_all(selection: QuerySelection, memory: torch.Tensor) -> tuple:
    """Content, scores and box logits, image by image, every token through every layer."""
    anchors, valid = make_anchors(SHAPES, memory.device, memory.dtype)
    tokens = selection.norm(selection.proj(memory * valid.to(memory.dtype)))
    scores, boxes = selection.score(tokens), selection.box(tokens) + anchors
    chosen = [image.amax(-1).argsort(descending=True)[:7] for image in scores]
    return tuple(
        torch.stack([image[rows] for image, rows in zip(tensor, chosen, strict=True)])
        for tensor in (tokens, scores, boxes)
    )


def test_values_and_gradients_are_those_of_all_tokens():
    selection = QuerySelection(num_classes=3, embed_dims=16, num_queries=7, act='SiLU').double()
    for parameter in selection.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    memory = torch.randn(2, 36, 16, dtype=torch.double, requires_grad=True)
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
        content, scores, logits = selection(torch.randn(2, 36, 16), SHAPES)
    (content.sum() + scores.square().sum() + logits.square().sum()).backward()
    for name, parameter in selection.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
