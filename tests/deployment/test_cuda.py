"""The form for GPUs. What a GPU isn't needed for runs on a CPU, without graphs."""

import copy
import warnings

from deim_mmdet.deployment import fuse
from deim_mmdet.deployment.cuda import CudaDetector
from deim_mmdet.deployment.runtimes import Detections, compare

import pytest
import torch
from golden import filled_model, image
from mmdet.structures import DetDataSample
from test_graphs import StandIn, on_gpu
from torch import nn

MODELS = ['deim_dfine_n', 'rtdetrv2_r18', 'deimv2_pico']
SIDE = 64


@pytest.fixture(scope='module', params=MODELS)
def model(request):
    return filled_model(request.param).float().eval()


@pytest.fixture(scope='module')
def small():
    return filled_model(MODELS[0]).float().eval()


def samples(*shapes):
    """A data sample for each original (height, width)."""
    return [
        DetDataSample(
            metainfo=dict(
                img_shape=(SIDE, SIDE),
                batch_input_shape=(SIDE, SIDE),
                scale_factor=(SIDE / width, SIDE / height),
            )
        )
        for height, width in shapes
    ]


def images(name, count=1, device='cpu'):
    return torch.from_numpy(image(name, (count, 3, SIDE, SIDE))).float().to(device)


def predicted(model, inputs, *shapes):
    with torch.no_grad():
        found = [sample.pred_instances for sample in model.predict(inputs, samples(*shapes))]
    return [(each.labels, each.bboxes, each.scores) for each in found]


def on_cpu(detections):
    return Detections(*(torch.stack([each]).cpu().numpy() for each in detections))


def assert_same_in_half_precision(model, detector, inputs, *shapes):
    for expected, got in zip(
        predicted(model, inputs, *shapes), predicted(detector, inputs, *shapes), strict=True
    ):
        assert got[1].dtype == got[2].dtype == torch.float32
        agreement = compare(on_cpu(expected), on_cpu(got), score_tolerance=2e-3)
        assert agreement.score <= 2e-3
        assert agreement.box <= 0.5
        assert agreement.unmatched <= 0.01


def test_recorded_detections_are_those_of_each_image(model):
    """Also of another image of another original size; recording them, the host reads nothing."""
    fused = fuse(model)
    detector = CudaDetector(fused, half=False, graph=True)
    detector.graphs.capture = StandIn()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        detector.detect(images('c'), torch.ones(1, 2))
    for name, shape in (('a', (50, 70)), ('b', (480, 640))):
        got, expected = (predicted(each, images(name), shape)[0] for each in (detector, fused))
        for part, expected_part in zip(got, expected, strict=True):
            torch.testing.assert_close(part, expected_part, rtol=1e-5, atol=1e-5)
    assert detector.graphs.capture.shapes == [(1, 3, SIDE, SIDE)]


def test_sizes_with_fractions_after_whole_ones(small):
    detector = CudaDetector(fuse(small), half=False, graph=True)
    detector.graphs.capture = StandIn()
    detector.detect(images('a'), torch.tensor([[640, 480]]))
    sizes = torch.tensor([[640.9, 480.9]])
    expected = detector._detect(images('a'), sizes)[1]
    torch.testing.assert_close(detector.detect(images('a'), sizes)[1], expected)


def test_half_precision_keeps_detections_and_coordinates(model):
    """Its convolutions and attention are in half precision. Reference boxes never are."""
    detector = CudaDetector(fuse(model), half=True, graph=False)
    read, boxes = [], []
    for part in detector.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    for layer in detector.bbox_head.decoder.layers:
        layer.cross_attn.register_forward_pre_hook(lambda _, given: boxes.append(given[1]))
    assert_same_in_half_precision(model, detector, images('a'), (SIDE, SIDE))
    assert {tensor.dtype for tensor in read} == {torch.float16}
    # Channels stand next to each other; DEIMv2 reads half of those of a convolution's output.
    assert read[0].stride(1) == 1
    # The first are the selected tokens' boxes; what follows is refined from them.
    assert {tensor.dtype for tensor in boxes[1:]} == {torch.float32}


def test_autocast_changes_nothing(small):
    detector = CudaDetector(fuse(small), half=False, graph=False)
    inputs, sizes = images('a'), torch.tensor([[SIDE, SIDE]])
    with torch.autocast('cpu', torch.bfloat16):
        within = detector.detect(inputs, sizes)
    assert all(map(torch.equal, within, detector.detect(inputs, sizes)))


def test_it_takes_the_place_of_the_model(small):
    fused = fuse(small)
    fused.cfg, fused.dataset_meta = dict(a=1), dict(classes=('b',))
    detector = CudaDetector(fused, half=False, graph=True)
    detector.graphs.capture = StandIn()
    assert (detector.cfg, detector.dataset_meta) == (fused.cfg, fused.dataset_meta)
    assert detector.bbox_head.num_classes == small.bbox_head.num_classes
    pixels = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    data = dict(inputs=[pixels], data_samples=samples((9, 9)))
    copied = copy.deepcopy(detector)
    for each in (detector, copied):
        (sample,) = each.test_step(copy.deepcopy(data))
        assert sample.pred_instances.bboxes.shape == (300, 4)
    # Parameters with another place are recorded anew.
    copied.double().test_step(copy.deepcopy(data))
    assert [len(each.graphs.capture.shapes) for each in (detector, copied)] == [1, 2]


def test_on_a_cpu_it_is_fused_in_its_own_precision_with_one_warning(small):
    with pytest.warns(UserWarning, match='need a model on a GPU, this one is on cpu') as caught:
        fused = [fuse(small, half=True, graph=True) for _ in range(2)]
    assert len(caught) == 1
    assert all(type(each) is type(small) for each in fused)
    assert next(fused[0].parameters()).dtype == torch.float32


@on_gpu
@pytest.mark.parametrize(('half', 'graph'), [(True, False), (True, True), (False, True)])
def test_detections_on_a_gpu(model, half, graph):
    model = copy.deepcopy(model).cuda()
    detector = fuse(model, half=half, graph=graph)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name, *shapes in (('a', (50, 70)), ('b', (64, 64)), ('c', (64, 64), (30, 20))) * 2:
            inputs = images(name, len(shapes), 'cuda')
            assert_same_in_half_precision(model, detector, inputs, *shapes)
    with pytest.raises(RuntimeError, match='train the one that it was made from'):
        detector.train()(inputs)
