"""Backbones for images of other than three channels, and backbones that don't train."""

from functools import partial
from types import SimpleNamespace

from deim_mmdet.engine import CheckpointCheckHook
from deim_mmdet.models.backbones import HGNetv2, ResNetVd
from deim_mmdet.models.backbones.partly_pretrained import PartlyPretrained

import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import nn

BACKBONES = {'HGNetv2': partial(HGNetv2, 'B0'), 'ResNetVd': partial(ResNetVd, 18)}
every_backbone = pytest.mark.parametrize('build', BACKBONES.values(), ids=BACKBONES)


def loaded_from_three(build, channels, folder, prefix=''):
    """A backbone of three channels, and one of ``channels`` with its weights, by a file."""
    torch.manual_seed(0)
    three, other = build(), build(in_channels=channels)
    three.eval()
    other.eval()
    path = str(folder / 'three.pth')
    torch.save({prefix + name: value for name, value in three.state_dict().items()}, path)
    model = nn.ModuleDict(dict(backbone=other)) if prefix else other
    load_checkpoint(model, path, map_location='cpu', strict=True)
    return three, other


def assert_equal(expected, found):
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@every_backbone
@pytest.mark.parametrize('prefix', ['', 'backbone.'], ids=['alone', 'detector'])
def test_a_grey_image_gives_what_it_gives_three_times(build, prefix, tmp_path):
    three, grey = loaded_from_three(build, 1, tmp_path, prefix)
    image = torch.randn(1, 1, 64, 64)
    assert_equal(three(image.repeat(1, 3, 1, 1)), grey(image))


@every_backbone
def test_two_channels_share_the_sum(build, tmp_path):
    three, two = loaded_from_three(build, 2, tmp_path)
    image = torch.randn(1, 2, 64, 64)
    assert_equal(three(image.mean(1, keepdim=True).repeat(1, 3, 1, 1)), two(image))


@every_backbone
def test_further_channels_add_their_mean_to_the_first_three(build, tmp_path):
    three, six = loaded_from_three(build, 6, tmp_path)
    image = torch.randn(1, 6, 64, 64)
    # A filter's mean times a channel is the filter on this channel's third in all three.
    assert_equal(three(image[:, :3] + image[:, 3:].sum(1, keepdim=True) / 3), six(image))
    rgb = torch.cat([image[:, :3], torch.zeros(1, 3, 64, 64)], 1)
    assert_equal(three(image[:, :3]), six(rgb))


def test_files_that_fit_stay_and_others_are_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        'deim_mmdet.models.layers.input_channels.print_log', lambda text, **_: said.append(text)
    )
    _, four = loaded_from_three(BACKBONES['HGNetv2'], 4, tmp_path)
    (line,) = said
    assert line.startswith('stem.stem1.conv.weight: trained on 3 channels, adapted to 4')
    for channels in (3, 4):
        model = HGNetv2('B0', in_channels=channels)
        copy = HGNetv2('B0', in_channels=channels)
        copy.load_state_dict(model.state_dict())
        assert all(map(torch.equal, model.state_dict().values(), copy.state_dict().values()))
    assert len(said) == 1
    with pytest.raises(RuntimeError, match=r'stem\.stem1\.conv\.weight'):
        HGNetv2('B0', in_channels=5).load_state_dict(four.state_dict())


def test_a_training_starts_from_a_detector_of_three_channels():
    """The hook that compares checkpoint and model sees the adapted weights."""
    three, four = (nn.ModuleDict(dict(backbone=HGNetv2('B0', in_channels=c))) for c in (3, 4))
    loop = SimpleNamespace(run=None)
    dataset = SimpleNamespace(dataset=SimpleNamespace())
    runner = SimpleNamespace(model=four, _resume=False, _train_loop=loop, train_dataloader=dataset)
    runner._val_loop = runner._test_loop = None
    checkpoint = dict(state_dict=three.state_dict())
    CheckpointCheckHook().after_load_checkpoint(runner, checkpoint)
    weight = checkpoint['state_dict']['backbone.stem.stem1.conv.weight']
    assert torch.equal(weight[:, :3], three.backbone.stem.stem1.conv.weight)
    four.load_state_dict(checkpoint['state_dict'])


def test_a_similar_network_gives_its_stem_too(tmp_path):
    path = str(tmp_path / 'b0.pth')
    given = HGNetv2('B0')
    torch.save(given.state_dict(), path)
    grey = HGNetv2('B0', in_channels=1)
    PartlyPretrained(path)(grey)
    weight = given.state_dict()['stem.stem1.conv.weight']
    torch.testing.assert_close(grey.stem.stem1.conv.weight, weight.sum(1, keepdim=True))


@every_backbone
@pytest.mark.parametrize('frozen_stages', [-2, 5])
def test_stages_that_there_are_not(build, frozen_stages):
    with pytest.raises(ValueError, match=f'must be among -1 … 4, got {frozen_stages}'):
        build(frozen_stages=frozen_stages)


@every_backbone
@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_the_first_stages_stay(build, frozen_stages):
    backbone = build(frozen_stages=frozen_stages)
    backbone.eval()
    backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trained = [p for p in backbone.parameters() if p.requires_grad]
    outputs = backbone(torch.randn(2, 3, 64, 64))
    assert outputs[-1].requires_grad == (frozen_stages < 4)
    if trained:
        sum(output.square().mean() for output in outputs).backward()
        torch.optim.SGD(trained, lr=1.0).step()
    parts = ['stem', 'layer1', 'layer2', 'layer3', 'layer4']
    if hasattr(backbone, 'stages'):
        parts = ['stem', *(f'stages.{i}' for i in range(4))]
    for i, part in enumerate(parts):
        own = {n: v for n, v in before.items() if n.startswith(f'{part}.')}
        assert own
        stays = {n: torch.equal(v, backbone.state_dict()[n]) for n, v in own.items()}
        weights = [stay for n, stay in stays.items() if own[n].dim() == 4]
        statistics = [stay for n, stay in stays.items() if n.endswith('running_mean')]
        frozen = i <= frozen_stages
        assert all(stays.values()) if frozen else not any(weights + statistics)


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r'frozen_stages of HGNetv2 must be among -1 … 4, got 5'):
        HGNetv2('B0', frozen_stages=5)
