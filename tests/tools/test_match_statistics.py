import csv
from pathlib import Path

from deim_mmdet.engine.config import load_config

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.structures import InstanceData
from typed_configs import SPELLINGS, spelled

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
IMAGES, SIDE = 12, 128


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis/match_statistics.py')


@pytest.fixture(scope='module')
def data(load_tool, tmp_path_factory) -> Path:
    pytest.importorskip('sklearn')
    maker = load_tool('demo/make_dataset.py')
    root = tmp_path_factory.mktemp('data') / 'digits'
    settings = maker.SceneSettings(train=IMAGES, val=1, size=(SIDE, SIDE), digits=(0, 2, 3, 4))
    maker.make_dataset(root, settings)
    return root


@pytest.fixture
def config(data) -> Config:
    options = {'data_root': str(data), 'train_dataloader.batch_size': 4}
    return load_config(str(ROOT / 'configs/demo/deim_dfine_demo.py'), options)


def annotated(tool, config) -> list[int]:
    """Objects of each image in its annotations."""
    dataset = tool.TrainingImages(config).dataset.dataset
    return [len(dataset.get_data_info(i)['instances']) for i in range(len(dataset))]


def test_one_to_one_counts_the_objects_and_dense_more(tool, config):
    counts = tool.match_statistics(config, 100, {})
    assert list(counts) == [tool.ONE_TO_ONE, tool.DENSE_ONE_TO_ONE]
    assert sorted(counts[tool.ONE_TO_ONE]) == sorted(annotated(tool, config))
    assert counts[tool.DENSE_ONE_TO_ONE].mean() > 1.5 * counts[tool.ONE_TO_ONE].mean()


def test_seed_decides(tool, config):
    first, again, other = (
        tool.match_statistics(config, 8, {}, seed)[tool.DENSE_ONE_TO_ONE] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_no_more_positives_than_queries(tool, config):
    config.model.bbox_head.query_selection.num_queries = 2
    counts = tool.match_statistics(config, 100, {})
    assert sorted(counts[tool.ONE_TO_ONE]) == sorted(min(2, n) for n in annotated(tool, config))
    assert counts[tool.DENSE_ONE_TO_ONE].max() == 2


def test_a_schedule_without_dense_stage_has_no_dense_count(tool, config):
    config.custom_hooks = [dict(type='DenseO2OScheduleHook', stages=(0, 0, 5))]
    assert list(tool.match_statistics(config, 4, {})) == [tool.ONE_TO_ONE]


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_types_may_be_classes_and_paths(tool, config, spelling):
    hooks = [dict(type='NumClassCheckHook'), dict(type='DenseO2OScheduleHook')]
    other = Config(dict(recipe=dict(stages=(1, 3, 5)), custom_hooks=spelled(hooks, spelling)))
    assert tool.has_dense_stage(other)
    other.recipe.stages = (3, 3, 5)
    assert not tool.has_dense_stage(other)


def test_a_config_of_mmdets_without_stages(tool, config):
    dataset = config.train_dataloader.dataset.dataset
    dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs'),
    ]
    plain = Config(
        dict(
            model=dict(data_preprocessor=dict(type='DetDataPreprocessor')),
            train_dataloader=dict(batch_size=5, dataset=dataset),
        )
    )
    matchings = {'many': tool.StandIn(0.75, [8, 16, 32])}
    counts = tool.match_statistics(plain, 100, matchings)
    # Whole batches only, and no head that limits.
    assert len(counts[tool.ONE_TO_ONE]) == 10
    assert set(counts) == {tool.ONE_TO_ONE, 'many'}
    assert (counts['many'] > counts[tool.ONE_TO_ONE]).all()


@pytest.mark.parametrize('iou', [0.1, 0.5, 0.75, 1.0])
def test_stand_in_predicts_its_object_with_the_iou(tool, iou):
    boxes = torch.tensor([[10.0, 20.0, 90.0, 60.0], [30.0, 30.0, 50.0, 50.0], [100, 90, 124, 126]])
    cells = tool.make_cells(128, 128, [8, 16])
    assert len(cells) == 16**2 + 8**2
    overlaps = bbox_overlaps(tool.stand_in_predictions(cells, boxes, iou).boxes, boxes)
    for (x, y, *_), row in zip(cells.tolist(), overlaps, strict=True):
        holders = [
            (float((x2 - x1) * (y2 - y1)), k)
            for k, (x1, y1, x2, y2) in enumerate(boxes.tolist())
            if x1 < x < x2 and y1 < y < y2
        ]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - torch.tensor([x, y])
        own = min(holders)[1] if holders else int(centres.norm(dim=1).argmin())
        assert float(row[own]) == pytest.approx(iou, abs=1e-3)


@pytest.mark.parametrize(
    ('iou', 'positives'), [(0.05, 1), (0.25, 2), (0.5, 5), (0.8, 8), (1.0, 10)]
)
def test_simota_takes_ten_times_the_iou(tool, iou, positives):
    """Two large objects apart: each has cells enough."""
    boxes = torch.tensor([[10.0, 10.0, 150.0, 150.0], [170.0, 170.0, 310.0, 310.0]])
    predictions = tool.stand_in_predictions(tool.make_cells(320, 320, [8, 16, 32]), boxes, iou)
    objects = InstanceData(bboxes=boxes, labels=torch.zeros(2, dtype=torch.long))
    assert tool.one_to_many(predictions, objects) == 2 * positives


def test_checkpoint_predictions_are_those_that_queries_are_selected_from(
    tool, config, tmp_path, monkeypatch
):
    """The boxes and scores handed to SimOTA hold the selected ones, at their cells."""
    torch.manual_seed(0)
    network = MODELS.build(config.model).eval()
    for parameter in network.bbox_head.query_selection.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path / 'random.pth'
    torch.save(dict(state_dict=network.state_dict()), path)
    given = []
    monkeypatch.setattr(tool, 'one_to_many', lambda cells, objects: given.append(cells) or 7)
    model = tool.TrainedModel(config, str(path))
    selected = []
    model.model.bbox_head.query_selection.register_forward_hook(
        lambda module, args, output: selected.append(output)
    )
    counts = tool.match_statistics(config, 4, {'many': model})
    assert counts['many'].tolist() == [7] * 4
    (selected,) = selected
    for image, cells in enumerate(given):
        # Strides 16 and 32, without the cells whose anchors are outside of the image.
        assert set(cells.cells[:, 2].tolist()) == {16.0, 32.0}
        assert len(cells.boxes) <= (SIDE // 16) ** 2 + (SIDE // 32) ** 2
        for scores, logits in zip(
            selected.scores[image].sigmoid(), selected.box_logits[image], strict=True
        ):
            cx, cy, w, h = (logits.sigmoid() * SIDE).tolist()
            box = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
            if not logits.isfinite().all():
                continue
            same = (cells.boxes - box).abs().amax(1) + (cells.scores - scores).abs().amax(1)
            assert same.min() < 1e-3


def test_command_writes_table_and_plot(tool, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out' / 'statistics.png'
    config = ROOT / 'configs/demo/deim_dfine_demo.py'
    arguments = [str(config), '--num', '8', '--iou', '0.5', '--strides', '16', '32']
    arguments += ['--out', str(out), '--cfg-options', f'data_root={data}']
    monkeypatch.setattr('sys.argv', ['match_statistics.py', *arguments])
    tool.main()
    text = capsys.readouterr().out
    with open(out.with_suffix('.csv'), newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['matching'] for row in rows] == [
        'one-to-one',
        'Dense one-to-one',
        'one-to-many (SimOTA), IoU 0.5',
    ]
    for row in rows:
        assert all(value in text for value in row.values())
        assert float(row['5%']) <= float(row['50%']) <= float(row['95%']) <= int(row['maximum'])
    means = [float(row['mean']) for row in rows]
    assert float(rows[1]['times one-to-one']) == pytest.approx(means[1] / means[0], abs=2e-3)
    assert cv2.imread(str(out)).std() > 0
    assert len(list(out.parent.iterdir())) == 2


def run_main(tool, monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['match_statistics.py', *map(str, arguments)])
    tool.main()


def test_what_is_wrong_is_named(tool, config, data, tmp_path, monkeypatch):
    demo = ROOT / 'configs/demo/deim_dfine_demo.py'
    options = ('--cfg-options', f'data_root={data}')
    with pytest.raises(SystemExit, match='absent'):
        run_main(tool, monkeypatch, tmp_path / 'absent.py')
    with pytest.raises(SystemExit, match='--num'):
        run_main(tool, monkeypatch, demo, '--num', 0, *options)
    with pytest.raises(SystemExit, match='--iou'):
        run_main(tool, monkeypatch, demo, '--iou', 0, *options)
    with pytest.raises(SystemExit, match='--strides'):
        run_main(tool, monkeypatch, demo, '--strides', 0, *options)
    empty = tmp_path / 'empty.py'
    empty.write_text('model = dict()\n')
    with pytest.raises(SystemExit, match=r'empty\.py.*train_dataloader'):
        run_main(tool, monkeypatch, empty)
    config.model = dict(type='RetinaNet', **mini_retinanet())
    with pytest.raises(ValueError, match='RetinaNet without query selection'):
        tool.TrainedModel(config, 'some.pth')


def mini_retinanet() -> dict:
    return dict(
        backbone=dict(type='ResNet', depth=18, out_indices=(3,)),
        neck=None,
        bbox_head=dict(type='RetinaHead', num_classes=4, in_channels=512),
    )


def test_images_without_objects_are_named(tool, config):
    config.train_dataloader.dataset.dataset.metainfo.classes = ('digit_0',)
    config.train_dataloader.dataset.pipeline.insert(
        1, dict(type='DropTinyBoxes', min_size=10 * SIDE)
    )
    with pytest.raises(ValueError, match='no object in 12 images'):
        tool.match_statistics(config, 12, {})


def test_bccd(tool, shared_dir):
    """On real photographs Dense O2O lies between one-to-one and a trained one-to-many matching."""
    config = load_config(
        str(ROOT / 'configs/deim_dfine_n_bccd.py'), dict(data_root=str(shared_dir / 'data/bccd'))
    )
    matchings = {'trained': tool.StandIn(0.75, [8, 16, 32])}
    counts = tool.match_statistics(config, 48, matchings)
    means = {name: values.mean() for name, values in counts.items()}
    assert 2 * means[tool.ONE_TO_ONE] < means[tool.DENSE_ONE_TO_ONE] < means['trained']
