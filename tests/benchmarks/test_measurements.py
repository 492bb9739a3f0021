"""What is timed is what is named: training steps, pipelines, counterparts, published points."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

from deim_mmdet.deployment.onnx_export import export_onnx
from deim_mmdet.utils import Stage

import pytest
import torch
from golden import CONFIGS, PARAMETERS, build_model
from measuring import latency
from measuring.latency import Candidate, make_runner
from measuring.published import PublishedPoint, published_points
from measuring.training import PARTS, TrainingStep, pipeline_speed
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from typed_configs import SPELLINGS, spelled

pytestmark = pytest.mark.slow

SIZE = (128, 160)


def config(name='deim_dfine_n'):
    return Config.fromfile(CONFIGS / f'{name}.py')


def test_a_training_step_trains():
    model = build_model('deim_dfine_n')
    step = TrainingStep(model, config().optim_wrapper, batch=2, size=SIZE, objects=3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for _ in range(3):
        step()
    changed = [not torch.equal(value, before[name]) for name, value in model.named_parameters()]
    assert sum(changed) > 0.9 * len(changed)
    timings = step.timings()
    assert list(timings) == [*PARTS, 'total']
    # The first step, which allocates, is left out.
    assert {timing.rounds for timing in timings.values()} == {2}
    assert all(timing.lowest > 0 for timing in timings.values())
    # The criterion was timed inside the step, not left hooked.
    assert not model.bbox_head.criterion._forward_hooks


def test_parts_of_a_training_step_are_told_apart(monkeypatch):
    """On a clock that stands still but for the seconds that each part is made to take."""
    model = build_model('deim_dfine_n')
    step = TrainingStep(model, config().optim_wrapper, batch=2, size=SIZE, objects=3)
    now, slowness = 0.0, 10

    def take(seconds, part, name):
        function = getattr(part, name)

        def slow(*args, **kwargs):
            nonlocal now
            now += seconds * slowness
            return function(*args, **kwargs)

        monkeypatch.setattr(part, name, slow)

    monkeypatch.setattr(time, 'perf_counter', lambda: now)
    take(1, model, 'extract_feat')
    take(2, model.bbox_head.criterion, 'forward')
    take(4, model, 'parse_losses')
    take(8, step.optimizer, 'backward')
    take(16, step.optimizer, 'step')
    take(32, step.optimizer, 'zero_grad')
    step()
    slowness = 1
    step()
    milliseconds = {part: timing.median for part, timing in step.timings().items()}
    assert milliseconds == dict(
        forward=5000, criterion=2000, backward=8000, optimizer=48000, total=63000
    )


@DATASETS.register_module()
class StagedDataset:
    """Samples that tell the stage they were made in."""

    seen: list = []

    def __init__(self):
        self.stage = None

    def set_stage(self, stage):
        self.stage = stage

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.seen.append((self.stage, index))


def test_the_pipeline_is_timed_at_every_stage():
    StagedDataset.seen.clear()
    speeds = pipeline_speed(DATASETS.build(dict(type='StagedDataset')), num_images=5)
    assert list(speeds) == [stage.label for stage in Stage]
    assert all(speed > 0 for speed in speeds.values())
    assert [stage for stage, _ in StagedDataset.seen] == [s for s in Stage for _ in range(6)]
    # The same samples at each.
    indices = [index for _, index in StagedDataset.seen]
    assert indices == indices[:6] * 4


@pytest.mark.parametrize(
    ('name', 'tolerance'),
    # Their smaller backbones and necks have a few parameters less.
    [
        ('dfine_l', 0),
        ('dfine_x', 0),
        ('rtdetrv2_r50', 0),
        ('dfine_n', 0.005),
        ('rtdetrv2_r18', 0.005),
    ],
)
def test_counterparts_have_as_many_parameters(name, tolerance):
    pytest.importorskip('transformers')
    from measuring.transformers_models import build_counterpart

    counterpart = build_counterpart(config(name).model)
    assert sum(p.numel() for p in counterpart.parameters()) == pytest.approx(
        PARAMETERS[name], rel=tolerance, abs=0
    )
    assert not counterpart.training


@pytest.mark.parametrize('spelling', SPELLINGS)
@pytest.mark.parametrize('name', ['dfine_n', 'rtdetrv2_r18'])
def test_counterparts_of_configs_with_classes_and_paths(name, spelling):
    pytest.importorskip('transformers')
    from measuring.transformers_models import build_counterpart

    model = spelled(config(name).model, spelling)
    counterpart = build_counterpart(ConfigDict(model))
    assert sum(p.numel() for p in counterpart.parameters()) == pytest.approx(
        PARAMETERS[name], rel=0.005
    )
    model['bbox_head']['type'] = 'mmdet.RetinaHead'
    with pytest.raises(ValueError, match=r'no model with a RetinaHead$'):
        build_counterpart(ConfigDict(model))


def test_every_form_gives_outputs_of_the_batch(tmp_path):
    for module in ('onnx', 'onnxruntime'):
        pytest.importorskip(module)
    model = build_model('deim_dfine_n').eval()
    onnx_path = export_onnx(model, tmp_path / 'model.onnx', SIZE)
    images = torch.rand(3, 3, *SIZE)
    outputs = {
        name: make_runner(name, config().model, model, SIZE, onnx_path)(images)
        for name in ('pytorch', 'fused', 'onnxruntime')
    }
    # 80 + 20 tokens, of which each is a query.
    assert outputs['fused'][0].shape == outputs['pytorch'][0].shape == (3, 100, 80)
    assert outputs['onnxruntime'].scores.shape == (3, 300)
    # Of all pairs the best, since rounding decides on the order of queries.
    for name in ('fused', 'pytorch'):
        best = outputs[name][0].sigmoid().flatten(1).amax(1)
        torch.testing.assert_close(
            torch.from_numpy(outputs['onnxruntime'].scores[:, 0]), best, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize('name', ['reference', 'transformers'])
def test_independent_implementations_take_the_same_images(name):
    pytest.importorskip({'reference': 'dfine'}.get(name, name))
    cfg = config('dfine_n').model
    outputs = make_runner(name, cfg, None, (256, 256))(torch.rand(2, 3, 256, 256))
    scores = outputs['pred_logits'] if name == 'reference' else outputs.logits
    assert scores.shape == (2, 300, 80)
    assert not scores.requires_grad


def test_a_candidate_is_timed_in_a_process_of_its_own():
    cfg = config()
    cfg.model.backbone.init_cfg = None
    start = time.perf_counter()
    with Candidate('fused', cfg.model, SIZE, None, num_threads=1) as candidate:
        seconds = candidate.seconds(batch=2, calls=3)
        processor = candidate.seconds(batch=2, calls=1, cpu_time=True)
        memory = candidate.peak_memory(batch=2)
        assert candidate._call(os.getpid) != os.getpid()
    assert len(seconds) == 3
    assert 0 < sum(seconds) + sum(processor) < time.perf_counter() - start
    assert memory is None or memory >= 0


def test_candidates_of_one_process_keep_to_their_own_models(monkeypatch):
    """As on a GPU: each has a thread, and all are built at once."""
    monkeypatch.setattr(latency, 'ProcessPoolExecutor', lambda *_: ThreadPoolExecutor(1))
    called = []

    def noted(backend, config, model, *args):
        run = make_runner(backend, config, model, *args)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        return lambda images: called.append((num_parameters, len(images))) or run(images)

    monkeypatch.setattr(latency, 'make_runner', noted)
    names = ['deim_dfine_n', 'deim_dfine_s', 'deim_dfine_m']
    configs = [config(name).model for name in names]
    for each in configs:
        each.backbone.init_cfg = None
    with ThreadPoolExecutor() as threads:
        candidates = [
            *threads.map(
                lambda each: Candidate('pytorch', each, SIZE, None, num_threads=1), configs
            )
        ]
    for batch, candidate in enumerate(candidates, 1):
        with candidate:
            candidate.seconds(batch, calls=1)
    # The first call isn't timed.
    assert called == [(PARAMETERS[name], n) for n, name in enumerate(names, 1) for _ in range(2)]


def test_what_is_wrong_in_the_process_of_a_candidate_is_told_here():
    with pytest.raises(ValueError, match='square images, not 128x160'):
        Candidate('reference', config('dfine_n').model, SIZE, None, num_threads=1)


def test_published_points_of_the_index():
    points = {point.name: point for point in published_points()}
    assert points['deim_dfine_n'] == PublishedPoint(
        'deim_dfine_n', 'DEIM-D-FINE', 2.12, 43.0, 'T4, TensorRT FP16'
    )
    assert points['dfine_x'].ap == 55.8
    assert points['deim_dfine_x'].latency == 12.89


def test_models_without_published_figures_are_left_out(tmp_path):
    path = tmp_path / 'index.yml'
    path.write_text(json.dumps(dict(Models=[
        {'Name': 'a', 'In Collection': 'A', 'Results': [{'Metrics': {'box AP': 1}}]},
        {'Name': 'b', 'In Collection': 'A', 'Metadata': {'inference time (ms/im)': [{}]}},
    ])))  # fmt: skip
    assert published_points(path) == []
