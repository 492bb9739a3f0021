"""What half precision may round, and what not."""

import functools

from deim_mmdet.deployment import fuse
from deim_mmdet.models.dense_heads import DFINEHead
from deim_mmdet.models.layers.affine import LearnableAffine
from deim_mmdet.models.layers.conv_norm import FrozenBatchNorm2d
from deim_mmdet.ops import deformable_attention

import pytest
import torch
from golden import build_model
from measuring.half_products import HalfProducts
from mmdet.registry import MODELS
from torch import nn
from torch.overrides import TorchFunctionMode

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
NETWORKS = [
    'dfine_n', 'dfine_l', 'rtdetrv2_r18', 'rtdetrv2_r50', 'deimv2_n', 'deimv2_pico', 'deimv2_s',
    'ecdet_s',
]  # fmt: skip
HALVES = [torch.bfloat16, torch.float16]
DEVICES = ['cpu', pytest.param('cuda', marks=on_gpu)]
LEVELS = [(20, 12), (10, 6)]
POINTS = [3, 2]
# Of an image of 640 pixels: 0.01 pixels.
TOLERANCE = dict(rtol=0, atol=0.01 / 640)


class Recorder:
    """What modules return, in float64, by name; outputs of a module in order of its calls."""

    def __init__(self, root: nn.Module) -> None:
        self.outputs = {}
        for name, module in root.named_modules():
            module.register_forward_hook(functools.partial(self._keep, name))

    def _keep(self, name, module, args, output):
        if isinstance(output, torch.Tensor):
            self.outputs.setdefault(name, []).append(output.detach().double())

    def last(self, name: str) -> torch.Tensor:
        return self.outputs[name][-1]

    def of_layer(self, heads: str, i: int) -> torch.Tensor:
        """What the head of layer i returned, also if all layers have one head."""
        own = self.outputs.get(f'{heads}.{i}', ())
        return own[-1] if len(own) == 1 else self.outputs[f'{heads}.0'][i]


def random_detector(kind: str) -> nn.Module:
    """A module with a head of this kind, whose layers all give other numbers than 0."""
    head = dict(
        type=f'{kind}Head',
        num_classes=3,
        in_channels=[32] * 2,
        embed_dims=32,
        query_selection=dict(num_queries=40),
        decoder=dict(num_points=POINTS, num_layers=3, num_heads=4, ffn_channels=16),
    )
    if kind == 'RTDETR':
        head['decoder']['query_position_channels'] = [32]
    if kind == 'DEIMv2':
        # With RMSNorm, SwiGLU and a shared head.
        head['type'], head['decoder']['type'] = 'DFINEHead', 'DEIMv2LightDecoder'
        head['query_selection']['project'] = False
    detector = nn.Module()
    detector.bbox_head = MODELS.build(head).eval()
    for name, parameter in detector.named_parameters():
        if not name.endswith(('.up', '.reg_scale')):
            nn.init.normal_(parameter, std=0.2)
    return detector


def logit(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes.clamp(min=1e-5) / (1 - boxes).clamp(min=1e-5)).log()


def dfine_boxes(record: Recorder, first: torch.Tensor) -> list[torch.Tensor]:
    """Boxes of D-FINE's three layers by the paper's formulas, from what the heads returned."""
    initial = (record.last('decoder.initial_box_head') + logit(first)).sigmoid()
    step = 3 ** (2 / 30)
    positive = [step**n - 1 for n in range(1, 16)]
    table = torch.tensor([-4, *(-p for p in reversed(positive)), 0, *positive, 4]).double()
    logits, boxes = 0, []
    for i in range(3):
        logits = logits + record.of_layer('decoder.distribution_heads', i)
        moves = logits.unflatten(-1, (4, 33)).softmax(-1) @ table / 4
        centres, sizes = initial.split(2, dim=-1)
        low = centres - sizes / 2 - moves[..., :2] * sizes
        high = centres + sizes / 2 + moves[..., 2:] * sizes
        boxes.append(torch.cat([(low + high) / 2, high - low], dim=-1))
    return boxes


def rtdetr_boxes(record: Recorder, first: torch.Tensor) -> list[torch.Tensor]:
    boxes = [first]
    for i in range(3):
        boxes.append((record.last(f'decoder.box_heads.{i}') + logit(boxes[-1])).sigmoid())
    return boxes[1:]


def anchors_before_the_sigmoid() -> torch.Tensor:
    anchors = [
        [(column + 0.5) / width, (row + 0.5) / height, 0.05 * 2**level, 0.05 * 2**level]
        for level, (height, width) in enumerate(LEVELS)
        for row in range(height)
        for column in range(width)
    ]
    return logit(torch.tensor(anchors).double())


@pytest.mark.parametrize('half', HALVES, ids=str)
@pytest.mark.parametrize('form', ['autocast', 'half', 'fused autocast', 'fused half'])
@pytest.mark.parametrize('kind', ['DFINE', 'RTDETR', 'DEIMv2'])
def test_boxes_are_exact_for_what_the_heads_return(kind, form, half, monkeypatch):
    detector = random_detector(kind)
    if 'fused' in form:
        detector = fuse(detector)
    if 'half' in form:
        detector.to(half)
    feats = [torch.randn(2, 32, *shape, dtype=half) for shape in LEVELS]
    head, samples = detector.bbox_head, []
    place = 'deployment.modules' if 'fused' in form else 'models.layers.decoder'
    module = f'deim_mmdet.{place}.deformable_attention'
    monkeypatch.setattr(
        module, lambda *args: samples.append(args[2]) or deformable_attention(*args)
    )
    record, references = Recorder(head), []
    for layer in head.decoder.layers:
        layer.register_forward_pre_hook(lambda module, args: references.append(args[2]))
    with torch.no_grad(), torch.autocast('cpu', half, enabled='autocast' in form):
        scores, boxes = head(feats)
    assert scores.dtype == half
    assert {t.dtype for t in (*references, *samples, boxes)} == {torch.float32}

    # The first reference boxes are anchors, moved.
    moves = logit(references[0].double()) - record.last('query_selection.box')
    distances = torch.cdist(moves, anchors_before_the_sigmoid())
    assert distances.amin(-1).max() < 1e-4
    formula = dfine_boxes if isinstance(head, DFINEHead) else rtdetr_boxes
    expected = formula(record, references[0].double())
    for got, box in zip([*references[1:], boxes], expected, strict=True):
        torch.testing.assert_close(got.double(), box, **TOLERANCE)
    for i, (locations, boxes) in enumerate(zip(samples, references, strict=True)):
        centres, sizes = boxes.double()[:, :, None, None].split(2, dim=-1)
        steps = torch.tensor([2 * n for n in POINTS for _ in range(n)])[:, None]
        if 'fused' in form:
            offsets = record.last(f'decoder.layers.{i}.cross_attn.samples')[..., : 4 * 5 * 2]
            steps = 1
        else:
            offsets = record.last(f'decoder.layers.{i}.cross_attn.sampling_offsets')
        expected = centres + offsets.view(2, 40, 4, 5, 2) / steps * sizes
        torch.testing.assert_close(locations.double(), expected, **TOLERANCE)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('half', HALVES, ids=str)
def test_affine_keeps_the_type_and_sums_in_its_own(half, device, layout):
    """The sums are beyond what float16 holds."""
    affine = LearnableAffine().to(device)
    nn.init.constant_(affine.scale, 0.7)
    nn.init.constant_(affine.bias, -0.2)
    x = torch.rand(2, 8, 64, 64, dtype=half, device=device).to(memory_format=layout)
    x.requires_grad_()
    grad = torch.rand_like(x, dtype=torch.float).mul(8).to(half)
    out = affine(x)
    out.backward(grad)
    assert out.dtype == half
    # Rounded once: half a unit in the last place.
    rounding = dict(rtol=torch.finfo(half).eps / 2 + 1e-6, atol=1e-6)
    torch.testing.assert_close(out.double(), 0.7 * x.double() - 0.2, **rounding)
    torch.testing.assert_close(x.grad.double(), 0.7 * grad.double(), **rounding)
    sums = (grad.double() * x.double()).sum(), grad.double().sum()
    assert all(value > 65504 for value in sums)
    for parameter, value in zip((affine.scale, affine.bias), sums, strict=True):
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad.double()[0], value, rtol=1e-4, atol=0)


@pytest.mark.parametrize('device', DEVICES)
def test_products_of_the_affine_may_be_larger_than_half_precision(device):
    affine = LearnableAffine().to(device)
    x = torch.full((1, 1, 2, 8), 700.0, dtype=torch.half, device=device)
    affine(x).backward(torch.full_like(x, 100.0))
    assert affine.scale.grad.item() == 16 * 700 * 100


def test_types_of_the_affine_beyond_the_cpu():
    affine = LearnableAffine().to('meta')
    x = torch.empty(2, 3, 4, 5, dtype=torch.half, device='meta', requires_grad=True)
    out = affine(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == torch.half
    assert affine.scale.grad.dtype == affine.bias.grad.dtype == torch.float32


@pytest.mark.parametrize('device', DEVICES)
def test_gradients_of_the_affine(device):
    affine = LearnableAffine().double().to(device)
    x = torch.randn(2, 3, 4, 5, dtype=torch.double, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, scale, bias: torch.func.functional_call(affine, dict(scale=scale, bias=bias), x),
        (x, affine.scale, affine.bias),
    )


@pytest.mark.parametrize('half', HALVES, ids=str)
def test_frozen_norm_keeps_the_type(half):
    norm = FrozenBatchNorm2d(4)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 1.5)
    x = torch.randn(2, 4, 8, 8).to(half).requires_grad_()
    out = norm(x)
    assert out.dtype == half
    out.sum().backward()
    weight, bias, mean, variance = (b.double()[:, None, None] for b in norm.buffers())
    scale, epsilon = weight / (variance + 1e-5).sqrt(), torch.finfo(half).eps
    expected = (x.double() - mean) * scale + bias
    torch.testing.assert_close(out.double(), expected, rtol=epsilon, atol=epsilon)
    torch.testing.assert_close(x.grad.double(), scale.expand(x.shape), rtol=epsilon, atol=0)


class ConvolutionInputs(TorchFunctionMode):
    """Types of what convolutions get, but for the image."""

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image
        self.dtypes = []
        self.of_image = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.conv2d and args[0] is self.image:
            self.of_image += 1
        elif func is nn.functional.conv2d:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('name', NETWORKS)
def test_no_convolution_is_fed_in_float32(name):
    model = build_model(name)
    # On a GPU autocast lets norms return float32.
    for norm in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
        norm.register_forward_hook(lambda module, args, output: output.float())
    image = torch.rand(2, 3, 64, 64)
    inputs = ConvolutionInputs(image)
    with HalfProducts(), torch.autocast('cpu', torch.bfloat16), inputs, torch.no_grad():
        feats = model.extract_feat(image)
    convolutions = sum(
        isinstance(m, nn.Conv2d) for part in (model.backbone, model.neck) for m in part.modules()
    )
    # The adapter of a vision transformer sees the image, too.
    assert inputs.of_image == 1 + hasattr(model.backbone, 'sta')
    assert inputs.dtypes == [torch.bfloat16] * (convolutions - inputs.of_image)
    assert {feat.dtype for feat in feats} == {torch.bfloat16}
