"""mmdet's own tools, unchanged, on our configs and checkpoints.

The inference task of ``analysis_tools/benchmark.py`` insists on a GPU (it moves the model to one)
and is run where there is one; its data tasks run anywhere.
"""

import re
import subprocess
import sys
from pathlib import Path

from deim_mmdet.deployment import fuse
from deim_mmdet.deployment.cuda import CudaDetector
from deim_mmdet.engine.image_size import input_sizes

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet_tools import LAUNCHER, TOOLS
from mmengine.config import Config
from starting import quick_environment

pytestmark = pytest.mark.slow

FIGURE = re.compile(r"(coco/bbox_mAP\w*)'?: (-?[\d.]+)")


def run(script, *arguments, cwd=None) -> str:
    """Output of a Python script, which must succeed."""
    launcher = LAUNCHER if TOOLS in script.parents else ()
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, (script, *arguments))],
        cwd=cwd,
        env=quick_environment(MPLBACKEND='Agg'),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def trained(tmp_path_factory, repo_root) -> Path:
    """Work directory of a few iterations on a made data set, with the TensorBoard backend."""
    folder = tmp_path_factory.mktemp('tools')
    data = folder / 'data'
    run(repo_root / 'tools/demo/make_dataset.py', data, '--train', 4, '--val', 2, '--size', 64)
    config = folder / 'tiny.py'
    config.write_text(
        f"""
_base_ = '{repo_root}/configs/deim_dfine_custom.py'
classes = tuple(f'digit_{{i}}' for i in range(10))
sets = dict(
    train=dict(ann_file='train.json', data_prefix=dict(img='train/')),
    val=dict(ann_file='val.json', data_prefix=dict(img='val/')),
)
for part in sets.values():
    part.update(data_root='{data}', metainfo=dict(classes=classes))
head = dict(num_classes=10, query_selection=dict(num_queries=20))
model = dict(bbox_head=head, backbone=dict(init_cfg=None))
train_cfg = dict(max_epochs=4)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(dataset=sets['train'])
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=sets['val'])
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/val.json')
test_evaluator = val_evaluator
default_hooks = dict(logger=dict(interval=1), visualization=dict(draw=True, interval=1))
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
"""
    )
    run(
        repo_root / 'tools/train.py',
        config,
        '--work-dir',
        folder / 'work',
        '--cfg-options',
        'image_size=64',
    )
    return folder / 'work'


def latest(work_dir: Path, pattern: str) -> Path:
    return max(work_dir.rglob(pattern), key=lambda path: path.stat().st_mtime)


def test_visualisation_hook_and_tensorboard(trained):
    assert latest(trained, 'events.out.tfevents*').stat().st_size > 0
    assert list(trained.rglob('vis_image/*.png'))


def test_inferencer(trained):
    inferencer = DetInferencer(
        str(trained / 'tiny.py'), str(trained / 'epoch_4.pth'), device='cpu', show_progress=False
    )
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    result = inferencer(image, no_save_vis=True)['predictions'][0]
    assert len(result['scores']) == len(result['labels']) == len(result['bboxes']) == 200
    assert set(result['labels']) <= set(range(10))
    inferencer.model = fuse(inferencer.model)
    (fused,) = inferencer(image, return_datasamples=True)['predictions']
    torch.testing.assert_close(
        fused.pred_instances.scores, torch.tensor(result['scores']), atol=1e-5, rtol=0
    )
    # The form for GPUs, in half precision.
    inferencer.model = CudaDetector(inferencer.model, half=True, graph=False)
    (half,) = inferencer(image, return_datasamples=True)['predictions']
    torch.testing.assert_close(
        half.pred_instances.scores, fused.pred_instances.scores, atol=2e-3, rtol=0
    )


def test_our_test_script_with_a_fused_model(trained, repo_root):
    arguments = (trained / 'tiny.py', trained / 'epoch_4.pth', '--work-dir', trained / 'fused')
    output = run(repo_root / 'tools/test.py', *arguments, '--fused', cwd=trained)
    assert 'coco/bbox_mAP' in output
    assert output.count('need a model on a GPU') == (not torch.cuda.is_available())


def test_mmdets_own_test_script(trained):
    output = run(
        TOOLS / 'test.py', trained / 'tiny.py', trained / 'epoch_4.pth',
        '--work-dir', trained / 'test', '--cfg-options', 'image_size=96', cwd=trained,
    )  # fmt: skip
    assert 'coco/bbox_mAP' in output
    used = Config.fromfile(latest(trained / 'test', 'tiny.py'))
    assert input_sizes(used).keys() == {(96, 96)}


def test_tools_that_read_predictions(trained, repo_root):
    config, found, plot = trained / 'tiny.py', trained / 'found.pkl', trained / 'confusion'
    arguments = (config, trained / 'epoch_4.pth', '--work-dir', trained / 'found')
    said = run(repo_root / 'tools/test.py', *arguments, '--out', found, cwd=trained)
    again = run(TOOLS / 'analysis_tools/eval_metric.py', config, found, cwd=trained)
    figures = [dict(FIGURE.findall(text)) for text in (said, again)]
    assert len(figures[0]) == 6
    said, again = ({name: float(value) for name, value in each.items()} for each in figures)
    assert said == again
    run(TOOLS / 'analysis_tools/confusion_matrix.py', config, found, plot, cwd=trained)
    assert (plot / 'confusion_matrix.png').stat().st_size > 1000


def test_get_flops(trained):
    output = run(TOOLS / 'analysis_tools/get_flops.py', trained / 'tiny.py', '--num-images', 1)
    assert 'Flops:' in output
    assert 'Params:' in output


def test_browse_dataset(trained):
    out = trained / 'browse'
    run(
        TOOLS / 'analysis_tools/browse_dataset.py', trained / 'tiny.py',
        '--output-dir', out, '--not-show',
    )  # fmt: skip
    assert len(list(out.glob('*.jpg'))) == 4


def test_analyze_logs(trained):
    log = latest(trained, 'scalars.json')
    plot = trained / 'loss.pdf'
    script = TOOLS / 'analysis_tools/analyze_logs.py'
    # Its default style is one of seaborn's, which the fork's script doesn't use any more.
    style = () if 'seaborn' in script.read_text() else ('--style', 'default')
    run(script, 'plot_curve', log, '--keys', 'loss', 'loss_cls', '--out', plot, *style)
    assert plot.stat().st_size > 1000


def test_print_config(trained):
    assert 'DFINEHead' in run(TOOLS / 'misc/print_config.py', trained / 'tiny.py')


def benchmark(work_dir: Path, *options) -> str:
    return run(
        TOOLS / 'analysis_tools/benchmark.py', work_dir / 'tiny.py', '--work-dir', work_dir,
        '--checkpoint', work_dir / 'epoch_4.pth', '--repeat-num', 1, '--num-warmup', 1,
        '--log-interval', 1, '--max-iter', 2, *options,
    )  # fmt: skip


@pytest.mark.parametrize(
    'task',
    [
        ('dataloader', '--dataset-type', 'train'),
        ('dataset', '--dataset-type', 'val'),
        pytest.param(
            ('inference',),
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="mmdet's inference benchmark needs a GPU"
            ),
        ),
    ],
)
def test_benchmark(trained, task):
    assert 'Overall fps' in benchmark(trained, '--task', *task)
