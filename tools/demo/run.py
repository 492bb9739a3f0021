"""The demo: make a data set, train DEIM-D-FINE through all stages, evaluate, draw pictures.

    python tools/demo/run.py [--work-dir work_dirs/demo] [--fraction 1.0]

`make demo` runs this. It fails if the detector doesn't reach AP50 0.5 on the validation set.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from make_dataset import SceneSettings, describe, make_dataset

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/demo/deim_dfine_demo.py'
TRAIN_IMAGES, VAL_IMAGES, EPOCHS = 960, 120, 12
# The smallest demo still has all four stages, with a few iterations in each.
FEWEST_IMAGES, FEWEST_EPOCHS = 32, 4
REQUIRED_AP50 = 0.5
STEPS = 4

TRAINED = re.compile(
    r'Epoch\(train\)\s+\[(?P<epoch>\d+)\]\[ *(?P<iter>\d+)/(?P<iters>\d+)\].* lr: (?P<lr>\S+)'
    r'.*eta: (?P<eta>\S+).* loss: (?P<loss>\S+)'
)
EVALUATED = re.compile(
    r'Epoch\(val\)\s+\[(?P<epoch>\d+)\].*bbox_mAP: (?P<ap>\S+).*bbox_mAP_50: (?P<ap50>\S+)'
)
STAGE = re.compile(r'Epoch (?P<epoch>\d+) of \d+: stage (?P<stage>\S+) begins')


class DemoError(Exception):
    """The demo failed; the message is for the user."""


def progress_line(line: str) -> str | None:
    """The part of a line of mmengine's log that is shown; None shows nothing of it."""
    if match := TRAINED.search(line):
        return (
            '  epoch {epoch:>2} iteration {iter:>3} of {iters}  loss {loss}  lr {lr}  '
            '{eta} left'.format(**match.groupdict())
        )
    if match := EVALUATED.search(line):
        return '  epoch {epoch:>2} evaluated: AP {ap}  AP50 {ap50}'.format(**match.groupdict())
    if match := STAGE.search(line):
        return '  epoch {epoch:>2}: stage {stage}'.format(**match.groupdict())
    return None


def run(command: Sequence[str], log: Path) -> None:
    """Run a command in the root of the checkout; write its output to ``log``, show its progress.

    Raises:
        DemoError: It failed; the message names the log and shows its end.
    """
    # The data loader's worker and the network share the cores. So a thread that waits for another
    # may spin only briefly. Without spinning, an idle machine takes half as long again; with the
    # default, a busy one takes many times as long.
    env = dict(os.environ, GOMP_SPINCOUNT='20000', PYTHONUNBUFFERED='1')
    env.setdefault('PYTHONWARNINGS', 'ignore')
    with log.open('w') as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for line in process.stdout:
            file.write(line)
            file.flush()
            if (shown := progress_line(line)) is not None:
                print(shown, flush=True)
    if process.wait():
        tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
        raise DemoError(f'{tail}\nfailed: {" ".join(map(str, command))}\nits output: {log}')


def mim(action: str, *options: str | Path) -> list[str]:
    """The command that runs an action of mim, such as ``train``, on the demo's config."""
    return [sys.executable, '-m', 'mim', action, 'deim_mmdet', CONFIG, *map(str, options)]


def read_metrics(work_dir: Path) -> dict[str, float]:
    """The figures that the latest test in ``work_dir`` wrote."""
    files = sorted(work_dir.glob('*/*.json'))
    if not files:
        raise DemoError(f'the evaluation wrote no figures to {work_dir}')
    return json.loads(files[-1].read_text())


def run_demo(work_dir: Path, fraction: float) -> float:
    """Run all steps; returns AP50 on the validation set, in [0, 1]."""
    started = time.monotonic()

    def begin(step: int, text: str) -> None:
        seconds = round(time.monotonic() - started)
        print(f'\n[{step}/{STEPS}, {seconds // 60}:{seconds % 60:02d}] {text}', flush=True)

    data, pictures = work_dir / 'data', work_dir / 'pictures'
    training, test = work_dir / 'training', work_dir / 'test'
    # Remove those of an earlier demo: a plot shows one training.
    for folder in (training, test, pictures):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    begin(1, f'data: handwritten digits on photographs, {data}')
    settings = SceneSettings(
        train=max(FEWEST_IMAGES, round(TRAIN_IMAGES * fraction)),
        val=max(FEWEST_IMAGES, round(VAL_IMAGES * fraction)),
        size=(128, 128),
        objects=(1, 3),
        scale=(0.3, 0.7),
        # No 1: in eight pixels it is a bar, like many things in the photographs.
        digits=(0, 2, 3, 4),
    )
    make_dataset(data, settings)
    print(describe(data))

    begin(2, f'training: mim train deim_mmdet {CONFIG}; whole log: {training / "output.log"}')
    epochs = max(FEWEST_EPOCHS, round(EPOCHS * fraction))
    options = ('--cfg-options', f'data_root={data}')
    run(
        mim('train', '--work-dir', training, *options, f'train_cfg.max_epochs={epochs}'),
        training / 'output.log',
    )

    # The last, not the best: the best was chosen on the images that are evaluated here.
    checkpoint = Path((training / 'last_checkpoint').read_text().strip())
    begin(3, f'evaluation: mim test deim_mmdet {CONFIG} --checkpoint {checkpoint}')
    run(
        mim('test', '--checkpoint', checkpoint, '--work-dir', test, *options),
        test / 'output.log',
    )
    metrics = read_metrics(test)
    ap, ap50 = metrics['coco/bbox_mAP'], metrics['coco/bbox_mAP_50']
    print(f'AP {ap:.3f}, AP50 {ap50:.3f} on {settings.val} validation images')

    begin(4, f'pictures: {pictures}')
    for script, *arguments in (
        ('show_detections', CONFIG, checkpoint, data / 'val', '--out', pictures / 'detections.png'),
        ('show_samples', CONFIG, '--out', pictures / 'dense_o2o.png', *options),
        ('plot_training', training, '--out', pictures / 'training.png'),
    ):
        tool = ROOT / 'tools/analysis' / f'{script}.py'
        run([sys.executable, str(tool), *map(str, arguments)], pictures / f'{script}.log')

    minutes = (time.monotonic() - started) / 60
    print(f"""
Done in {minutes:.1f} minutes: AP {ap:.3f}, AP50 {ap50:.3f}.
  data set in COCO format   {data}
  checkpoints and logs      {training}
  evaluation                {test}
  detections                {pictures / 'detections.png'}
  Dense O2O, stage by stage {pictures / 'dense_o2o.png'}
  losses, rate and AP       {pictures / 'training.png'}
Your own data: copy configs/deim_dfine_custom.py, as docs/data.md says.""")
    return ap50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo')
    parser.add_argument(
        '--fraction',
        type=float,
        default=1.0,
        help='share of images and of epochs; under 1 AP50 is reported and not judged',
    )
    args = parser.parse_args()
    if not 0 < args.fraction <= 1:
        parser.error(f'--fraction must be above 0 and at most 1, got {args.fraction}')
    try:
        ap50 = run_demo(args.work_dir.resolve(), args.fraction)
    except (DemoError, FileExistsError) as error:
        sys.exit(f'\nThe demo failed.\n{error}')
    if args.fraction == 1 and ap50 < REQUIRED_AP50:
        sys.exit(
            f'\nThe demo failed: AP50 {ap50:.3f} is under {REQUIRED_AP50}. Its training is '
            'reproducible up to the arithmetic of the machine, so something is wrong with it: '
            'compare pictures/training.png with the one in the README.'
        )


if __name__ == '__main__':
    main()
