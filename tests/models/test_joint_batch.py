"""Losses and gradients of several processes against those of one with the joint batch."""

from deim_mmdet.engine.processes import init_gloo
from deim_mmdet.models.layers.basic import inverse_sigmoid

import pytest
import torch
from golden import CONFIGS
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData
from processes import in_processes

SIZE = (64, 64)
CLASSES = 3
WHOLE = slice(None)
# Objects of the six images of each batch: two processes have three of them each, three have two.
BATCHES = dict(
    one_rank_empty=(3, 2, 0, 0, 1, 2),
    same_largest=(4, 1, 4, 2, 0, 4),
    most_ranks_empty=(0, 0, 0, 0, 0, 3),
    all_empty=(0,) * 6,
)
CASES = {
    (False, 'one_rank_empty'): BATCHES['one_rank_empty'],
    **{(True, kind): counts for kind, counts in BATCHES.items()},
}


def fixed_noise(labels, boxes, real):
    """Noise of denoising queries that follows from object and group, not from the batch."""
    groups = torch.arange(labels.shape[1]).view(-1, 1, 1, 1)
    negative = torch.arange(2).view(2, 1, 1)
    shift = torch.sin(97 * boxes + groups + 3 * negative)
    centres = boxes[..., :2] + 0.5 * shift[..., :2] * boxes[..., 2:] * (1 + negative)
    sizes = boxes[..., 2:] * (1 + 0.5 * shift[..., 2:])
    return labels, inverse_sigmoid(torch.cat([centres, sizes], -1).clamp(0, 1))


def small_model(name, denoising):
    """A model in float64 whose parameters are all random, with batch norms that don't learn."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py').model
    cfg.backbone.init_cfg = None
    cfg.bbox_head.num_classes = CLASSES
    cfg.bbox_head.query_selection.num_queries = 15
    cfg.bbox_head.decoder.num_layers = 2
    cfg.bbox_head.denoising = dict(num_queries=10) if denoising else None
    torch.manual_seed(0)
    model = MODELS.build(cfg).double()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.03 * torch.randn_like(parameter)
    if denoising:
        model.bbox_head.denoising._noised = fixed_noise
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def batch(counts, part=WHOLE):
    """Inputs and samples of those of a batch's images that ``part`` selects."""
    random = torch.Generator().manual_seed(1)
    height, width = SIZE
    images = torch.rand(len(counts), 3, height, width, generator=random, dtype=torch.float64)
    samples = []
    for count in counts:
        corner = torch.rand(count, 2, generator=random, dtype=torch.float64) * 40
        size = 8 + torch.rand(count, 2, generator=random, dtype=torch.float64) * 16
        sample = DetDataSample(metainfo=dict(img_shape=SIZE, batch_input_shape=SIZE))
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + size], -1),
            labels=torch.randint(CLASSES, (count,), generator=random),
        )
        samples.append(sample)
    return images[part], samples[part]


def losses_and_gradients(model, counts, part=WHOLE):
    model.zero_grad()
    losses = model(*batch(counts, part), mode='loss')
    sum(losses.values()).backward()
    losses = {name: value.item() for name, value in losses.items()}
    gradients = {
        name.removeprefix('module.'): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return losses, gradients


def difference(gradients, expected):
    """Largest difference of the gradients of any parameter, as a share of its largest one."""
    noise = 1e-6 * max(float(wanted.abs().max()) for wanted in expected.values())
    return max(
        float((gradients[key] - wanted).abs().max() / max(float(wanted.abs().max()), noise))
        for key, wanted in expected.items()
    )


def of_rank(name, cases, expected_file):
    """Of each case the loss terms of a process, and how far its gradients are from the expected."""
    init_gloo('pytorch', 60)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    models = {
        denoising: MMDistributedDataParallel(small_model(name, denoising), broadcast_buffers=False)
        for denoising in {denoising for denoising, _ in cases}
    }
    expected = torch.load(expected_file)
    results = {}
    for case, counts in cases.items():
        share = len(counts) // world_size
        part = slice(rank * share, (rank + 1) * share)
        losses, gradients = losses_and_gradients(models[case[0]], counts, part)
        results[case] = losses, difference(gradients, expected[case][1])
    return results


def joint(name, cases, file):
    """Losses and gradients of the whole batches in one process, also in ``file``."""
    results = {}
    for case, counts in cases.items():
        losses, gradients = losses_and_gradients(small_model(name, case[0]), counts)
        results[case] = losses, gradients
    torch.save(results, file)
    return results


@pytest.fixture(scope='module', params=['deim_dfine_n', 'deim_rtdetrv2_r18'])
def expected(request, tmp_path_factory):
    """Name of a model, the file with what its joint batches give, and its content."""
    file = tmp_path_factory.mktemp('joint') / 'joint.pt'
    return request.param, file, joint(request.param, CASES, file)


def mean_terms(results, case, terms):
    return {term: sum(result[case][0][term] for result in results) / len(results) for term in terms}


@pytest.mark.parametrize('count', [2, 3])
def test_processes_compute_the_losses_and_gradients_of_one(expected, count, tmp_path):
    """Those of denoising too, where the largest image of each process has as many objects.

    One process after another is without objects, all on one wrapped model: it would hang, or
    complain at the next batch, if a parameter took part on some of them only.
    """
    name, file, joint_results = expected
    results = in_processes(of_rank, count, name, CASES, file, folder=tmp_path)
    for case, (terms, _) in joint_results.items():
        denoising, kind = case
        exact = not denoising or kind in ('same_largest', 'all_empty')
        if kind == 'all_empty':
            # Each process divides a sum by one object at least: here by one too many.
            terms = {k: v / count if 'loss_cls' in k else v for k, v in terms.items()}
        elif exact:
            assert max(result[case][1] for result in results) < 1e-5, case
        if not exact:
            terms = {k: v for k, v in terms.items() if not k.startswith('dn.')}
        assert mean_terms(results, case, terms) == pytest.approx(terms, rel=1e-6), case
    without = ['dn.loss_cls' not in result[True, 'most_ranks_empty'][0] for result in results]
    assert without == [True] * (count - 1) + [False]


def test_denoising_terms_weigh_each_object_alike(tmp_path):
    """Where groups differ, a process adds what its images give alone, in proportion to objects."""
    name = 'deim_dfine_n'
    counts, parts, objects = (4, 1, 2, 2, 0, 1), (slice(0, 3), slice(3, 6)), (7, 3)
    cases, file = {(True, 'uneven'): counts}, tmp_path / 'joint.pt'
    alone = [losses_and_gradients(small_model(name, True), counts, part)[0] for part in parts]
    joint(name, cases, file)
    results = in_processes(of_rank, 2, name, cases, file, folder=tmp_path)
    for own, result, number in zip(alone, results, objects, strict=True):
        terms = [term for term in own if term.startswith('dn.') and 'ddf' not in term]
        assert terms
        for term in terms:
            wanted = own[term] * number / 5
            assert result[True, 'uneven'][0][term] == pytest.approx(wanted, rel=1e-6), term


@pytest.mark.parametrize('name', ['deim_dfine_n', 'deim_rtdetrv2_r18'])
def test_gradient_of_a_batch_is_the_sum_over_its_images(name):
    """A batch of one image has its own paths in torch's kernels."""
    model, (images, _) = small_model(name, False), batch((0, 0))

    def gradients(part):
        selected, predictions = model.bbox_head.decode(
            model.extract_feat(images[part]), all_layers=True
        )
        outputs = (predictions.scores, predictions.boxes, selected.scores, selected.content)
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        found = torch.autograd.grad(
            sum(output.square().sum() for output in outputs), trained.values(), allow_unused=True
        )
        return {k: g for k, g in zip(trained, found, strict=True) if g is not None}

    first, second = gradients(slice(0, 1)), gradients(slice(1, 2))
    assert difference({key: first[key] + second[key] for key in first}, gradients(WHOLE)) < 1e-9


def descend(model, counts, parts):
    """What one step of plain gradient descent over accumulated parts of a batch takes off."""
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapper = OptimWrapper(torch.optim.SGD(trained, lr=1), accumulative_counts=len(parts))
    wrapper.initialize_count_status(model, 0, len(parts))
    for part in parts:
        with wrapper.optim_context(model):
            losses = model(*batch(counts, part), mode='loss')
        wrapper.update_params(sum(losses.values()))
    return {
        key.removeprefix('module.'): before[key] - value.detach()
        for key, value in model.named_parameters()
        if value.requires_grad
    }


def descend_of_rank(name, counts, expected_file):
    init_gloo('pytorch', 60)
    rank = torch.distributed.get_rank()
    model = MMDistributedDataParallel(small_model(name, False), broadcast_buffers=False)
    parts = [slice(start + rank, start + rank + 1) for start in (0, 2, 4)]
    return difference(descend(model, counts, parts), torch.load(expected_file))


def test_gradient_accumulation(tmp_path):
    """Halves with equally many objects give the whole's gradient; processes change nothing."""
    name, counts, file = 'deim_rtdetrv2_r18', (2, 1, 1, 1, 3, 0), tmp_path / 'accumulated.pt'
    halves = descend(small_model(name, False), counts, [slice(0, 3), slice(3, 6)])
    _, whole = losses_and_gradients(small_model(name, False), counts)
    assert difference(halves, whole) < 1e-5
    thirds = descend(small_model(name, False), counts, [slice(0, 2), slice(2, 4), slice(4, 6)])
    torch.save(thirds, file)
    assert difference(thirds, whole) > 1e-3
    assert max(in_processes(descend_of_rank, 2, name, counts, file, folder=tmp_path)) < 1e-5
