"""Static shapes, and what a CUDA graph is made of, as far as a machine without a GPU shows it."""

import copy

from deim_mmdet.models import detectors
from deim_mmdet.models.detectors.graphed import GraphedNetwork, TensorNetwork, tensors_of

import pytest
import torch
from tiny_detectors import tiny_batch, tiny_detector
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HEADS = pytest.mark.parametrize('head', ['DFINEHead', 'RTDETRHead'])
# Of 20 denoising queries to pad to, these have 20, 18, none and 14; the last has 24 of 40.
BATCHES = [(5, 1), (0, 9), (0, 0), (1, 7), (12, 3)]


def step(model, counts, size=64, seed=0, dtype=torch.float32):
    """Losses and gradients of a batch, by name."""
    model.zero_grad()
    torch.manual_seed(seed)
    losses = model.loss(*tiny_batch(counts, size, seed, dtype))
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


def assert_equal_steps(found, expected, **tolerance):
    for results, references in zip(found, expected, strict=True):
        assert results.keys() == references.keys()
        for name, reference in references.items():
            torch.testing.assert_close(results[name], reference, **tolerance, msg=name)


@HEADS
@pytest.mark.parametrize('counts', BATCHES)
def test_padding_changes_neither_losses_nor_gradients(head, counts):
    plain = tiny_detector(head).double()
    padded = copy.deepcopy(plain)
    padded.static_shapes()
    results = [step(model, counts, dtype=torch.float64) for model in (padded, plain)]
    assert_equal_steps(*results, rtol=1e-9, atol=1e-12)


@HEADS
def test_only_what_is_seen_may_change_the_result(head):
    """The content of padding reaches no loss: a large value there changes nothing."""
    model = tiny_detector(head).double()
    model.static_shapes()
    head = model.bbox_head
    images, samples = tiny_batch((7, 1), dtype=torch.float64)
    targets, queries = head.prepare(samples, images.device)
    assert (queries.num_real, queries.content.shape[1]) == (14, 20)
    losses = []
    for value in (0.0, 1e6):
        queries.content.detach()[:, queries.num_real :] = value
        selected, predictions = head.decode(model.extract_feat(images), queries, all_layers=True)
        found = head.losses(selected.scores, selected.box_logits, predictions, queries, targets)
        losses.append(torch.stack([*found.values()]))
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)


def eager_graph(module, samples):
    """What :func:`compat.capture_cuda_graph` gives, without a graph.

    Like there, warm-up calls move running statistics, inputs are copied to the same memory each
    time, and all outputs have a gradient.
    """
    parameters = [*module.parameters()]
    leaves = [*samples, *parameters]
    for _ in range(3):
        names = [*module(*samples)]

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            for sample, given in zip(samples, inputs, strict=False):
                sample.data.copy_(given)
            with torch.enable_grad():
                ctx.outputs = [*module(*samples).values()]
            return tuple(output.detach() for output in ctx.outputs)

        @staticmethod
        def backward(ctx, *gradients):
            has_one = [output.requires_grad for output in ctx.outputs]
            outputs, gradients = (
                [each for each, wanted in zip(some, has_one, strict=True) if wanted]
                for some in (ctx.outputs, gradients)
            )
            inputs = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(outputs, inputs, gradients, allow_unused=True))
            return tuple(next(found) if leaf.requires_grad else None for leaf in leaves)

    return lambda *inputs: dict(zip(names, Replay.apply(*inputs, *parameters), strict=True))


def graphed(head, capture=eager_graph, **kwargs):
    """A detector without graphs, and the same with ``capture`` for them."""
    plain = tiny_detector(head, **kwargs).double()
    model = copy.deepcopy(plain)
    model.static_shapes()
    model.graphed = GraphedNetwork(capture)
    return plain, model


@HEADS
def test_graphs_change_neither_losses_nor_gradients_nor_statistics(head):
    captured = []

    def capture(module, samples):
        captured.append(tuple(samples[0].shape))
        return eager_graph(module, samples)

    models = graphed(head, capture)
    forms = [(64, 0), (64, 1), (96, 2), (64, 3), (96, 1), (96, 0), (64, 4), (64, 4)]
    for seed, (size, batch) in enumerate(forms):
        results = [step(m, BATCHES[batch], size, seed, torch.float64) for m in reversed(models)]
        assert_equal_steps(*results, rtol=1e-9, atol=1e-12)
    plain, model = (m.state_dict() for m in models)
    assert_equal_steps([model], [plain], rtol=1e-9, atol=1e-12)
    # From the second batch of a form on; the fifth batch has another number of queries.
    assert captured == [(2, 3, 64, 64), (2, 3, 96, 96), (2, 3, 64, 64)]


def test_what_has_no_gradient_gets_none_from_a_graph():
    _, model = graphed('DFINEHead')
    images, samples = tiny_batch((3, 1), dtype=torch.float64)
    _, queries = model.bbox_head.prepare(samples, images.device)
    for _ in range(3):
        predictions = model.graphed(model, images, queries)[2]
        assert predictions.distributions.requires_grad
        assert not predictions.references.requires_grad
        assert not predictions.reg_scale.requires_grad


def test_graphs_are_for_training_alone():
    """Neither evaluation mode nor losses without gradients capture or take a graph."""

    def never(module, samples):
        raise AssertionError

    _, model = graphed('DFINEHead', never)
    batch = tiny_batch((3, 1), dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):
            model.loss(*batch)
    model.eval()
    for _ in range(2):
        model.loss(*batch)


def test_failed_capture_leaves_training_without_graphs(monkeypatch):
    lines = []
    monkeypatch.setattr(detectors.graphed, 'print_log', lambda text, **how: lines.append(text))

    def fail(module, samples):
        module(*samples)
        try:
            raise RuntimeError('operation not permitted when stream is capturing\nmore')
        finally:
            # So does torch where it ends the capture.
            raise RuntimeError('operation failed due to a previous error during capture')

    models = graphed('DFINEHead', fail)
    for seed in range(4):
        results = [step(m, (3, 1), 64, seed, torch.float64) for m in reversed(models)]
        assert_equal_steps(*results, rtol=1e-9, atol=1e-12)
    assert_equal_steps(*([m.state_dict()] for m in models), rtol=1e-9, atol=1e-12)
    (line,) = lines
    assert 'operation not permitted when stream is capturing). Training goes on' in line


def test_without_denoising():
    models = graphed('RTDETRHead', denoising=None)
    for seed in range(3):
        results = [step(m, (3, 1), 64, seed, torch.float64) for m in reversed(models)]
        assert_equal_steps(*results, rtol=1e-9, atol=1e-12)


def test_copies_have_no_graphs():
    _, model = graphed('DFINEHead')
    for _ in range(2):
        step(model, (3, 1), dtype=torch.float64)
    assert any(model.graphed.graphs.values())
    assert not copy.deepcopy(model).graphed.graphs


def test_mixed_precision_has_graphs_of_its_own():
    """Weights are cast within the graph: nothing cast before is taken."""
    cached = []

    def capture(module, samples):
        cached.append(torch.is_autocast_cache_enabled())
        return eager_graph(module, samples)

    models = graphed('DFINEHead', capture)
    for model in models:
        model.float().static_shapes()
    for seed in range(3):
        with torch.autocast('cpu', torch.bfloat16):
            results = [step(m, (3, 1), 64, seed) for m in reversed(models)]
        assert_equal_steps(*results, rtol=1e-6, atol=1e-7)
    step(models[1], (3, 1))
    assert cached == [False]


class FromHost(TorchDispatchMode):
    """Notes operators that take tensors of the host to another device, or read the device."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, result)) if isinstance(each, torch.Tensor)]
        if any(each.device.type == 'cpu' for each in tensors):
            self.found.add(str(function))
        return result


@HEADS
def test_what_a_graph_holds_never_touches_the_host(head, monkeypatch):
    """Such a call ends a capture. A device without memory stands in for a GPU."""
    # That device has no autocast, and may not even be asked.
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda *_: False)
    model = tiny_detector(head, neck=True)
    model.static_shapes()
    images, samples = tiny_batch((3, 1))
    _, queries = model.bbox_head.prepare(samples, images.device)
    inputs = [each.detach().to('meta') for each in (images, *tensors_of(queries))]
    network = TensorNetwork(model).to('meta')
    # Warm-up calls fill caches.
    network(*inputs)
    with FromHost() as mode:
        outputs = [each for each in network(*inputs).values() if each.requires_grad]
        sum(each.sum() for each in outputs).backward()
    assert not mode.found
    with mode:
        torch.ones(3, device='meta') + torch.tensor([1, 2, 3]).to('meta')
    assert mode.found
