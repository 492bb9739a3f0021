"""Export a detector to ONNX, OpenVINO or TensorRT, and check it against PyTorch.

    python tools/export.py CONFIG CHECKPOINT [--backend openvino] [--half | --int8] [--out FILE]

The exported model takes B images of height H and width W, `images` (B, 3, H, W), RGB in [0, 1], and
`orig_target_sizes` (B, 2) as (width, height). A model of another number of channels C takes
(B, C, H, W) with the values of the files. It gives `labels`, `boxes` (x1, y1, x2, y2 in pixels
of the original images) and `scores`. CONFIG is a path; through mim it may be the name of one of the
package's configs.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import deim_mmdet  # noqa: F401  (registers the components)
from deim_mmdet.checkpoints.classes import are_assumed, stated_classes
from deim_mmdet.checkpoints.loading import SCHEME
from deim_mmdet.deployment.detector import DeployedDetector, takes_file_values
from deim_mmdet.deployment.evaluation import calibration_set, evaluate, read_inputs, spread
from deim_mmdet.deployment.extras import is_installed
from deim_mmdet.deployment.inputs import (
    example_image,
    image_loader,
    letterbox_of,
    network_size,
    read_image,
    test_set,
)
from deim_mmdet.deployment.onnx_export import OPSET, check_size, export_onnx
from deim_mmdet.deployment.quantize import quantize_onnx
from deim_mmdet.deployment.runtimes import (
    Agreement,
    ONNXRuntime,
    OpenVINORuntime,
    PyTorchRuntime,
    compare,
    export_openvino,
)
from deim_mmdet.deployment.tensorrt import TensorRTRuntime, build_engine, trtexec_command
from deim_mmdet.engine.agreement import checked_test_set
from deim_mmdet.engine.checks import check_checkpoint
from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.faults import EXPLAINED, MISTAKES, check_writable, without_traceback
from deim_mmdet.models.layers.input_channels import input_channels

import numpy as np
from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, load_state_dict
from torch import nn

SUFFIXES = dict(onnx='.onnx', openvino='.xml', tensorrt='.engine')

# Differences of scores and boxes (pixels), and share of detections without partner, up to which
# it is rounding: in single precision, and with backbone and neck in half precision. Integers change
# more than that, and what it costs is seen in AP only.
LIMITS = dict(single=Agreement(1e-3, 0.5, 0.02), half=Agreement(2e-2, 10.0, 0.1), int8=None)

TYPED = {'typed': 'Engine in the precisions of the file, TensorRT 10 and later, but not 10.4'}
# Engines for files of each precision, see trtexec_command.
ENGINES = dict(
    single={
        None: 'Engine in single precision',
        'layers': 'Engine in half precision but for attention and head, TensorRT 8.6 to 10',
    },
    half=TYPED,
    int8=TYPED | {'int8': 'Engine in the precisions of the file, TensorRT 8.6 to 10'},
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--backend', choices=list(SUFFIXES), default='onnx')
    parser.add_argument(
        '--out', type=Path, help='file to write; default: work_dirs/<config name>/<config name>.*'
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help="size of the input; default: that of the config's test pipeline",
    )
    parser.add_argument('--opset', type=int, default=OPSET, help=f'of ONNX; default {OPSET}')
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        '--half',
        dest='precision',
        action='store_const',
        const='half',
        default='single',
        help='half precision for backbone and neck, single for attention and head',
    )
    precision.add_argument(
        '--int8',
        dest='precision',
        action='store_const',
        const='int8',
        help='8-bit integers for convolutions of backbone and neck, single precision for the rest',
    )
    parser.add_argument(
        '--calibration',
        type=int,
        default=100,
        metavar='N',
        help="pictures of the config's training set, or else of its validation set, from which "
        '--int8 takes the ranges of values; default 100',
    )
    parser.add_argument(
        '--evaluate',
        action='store_true',
        help="evaluate the exported model, and PyTorch's, on the config's test set",
    )
    parser.add_argument('--max-batch', type=int, default=8, help='largest batch of TensorRT')
    parser.add_argument(
        '--image', type=Path, help="picture of the check; default: one of the config's test set"
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help="settings in place of the config's"
    )
    args = parser.parse_args()
    if not Path(args.checkpoint).is_file() and '://' not in args.checkpoint:
        parser.error(f'there is no checkpoint {args.checkpoint}')
    if args.opset < OPSET:
        parser.error(f'--opset must be at least {OPSET}')
    if args.calibration < 1:
        parser.error('--calibration must be at least 1')
    if args.out is None:
        name = Path(args.config).stem
        args.out = Path('work_dirs') / name / f'{name}{SUFFIXES[args.backend]}'
    if args.out.suffix != SUFFIXES[args.backend]:
        parser.error(
            f'--out {args.out}: a file for {args.backend} ends in {SUFFIXES[args.backend]}'
        )
    return args


def load_detector(cfg: Config, checkpoint: str) -> tuple[nn.Module, tuple[str, ...] | None]:
    """The config's detector with a checkpoint's weights, in evaluation mode.

    Returns:
        The detector, and its class names in the order of the labels, from the checkpoint or else
        from the config's test set; None where neither states them.

    Raises:
        RuntimeError: The checkpoint lacks parameters of the detector.
        ValueError: It can't be read or belongs to another detector. Or the test set has other
            classes; the message lists both.
    """
    init_default_scope('mmdet')
    # The checkpoint holds the backbone's weights too.
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    content = CheckpointLoader.load_checkpoint(f'{SCHEME}{checkpoint}', map_location='cpu')
    check_checkpoint(model, content)
    weights = content.get('state_dict', content)
    weights = {name.removeprefix('module.'): value for name, value in weights.items()}
    load_state_dict(model, weights, strict=True)
    return model.eval(), labels_of(cfg, content)


def labels_of(cfg: Config, checkpoint: dict) -> tuple[str, ...] | None:
    """Class names in the order of a checkpoint's labels; None where nothing states them.

    Raises:
        ValueError: The config's test set has other classes; the message lists both.
    """
    given = (test_set(cfg).get('metainfo') or {}).get('classes')
    saved = stated_classes(checkpoint)
    if saved is None or given is None:
        return saved or given
    if sorted(saved) == sorted(given):
        return saved
    if not are_assumed(checkpoint):
        raise ValueError(
            f'classes differ: the checkpoint {list(saved)}, the test set of the config '
            f'{list(given)}: take the config that the checkpoint was trained with'
        )
    return tuple(given)


def check(
    expected: Callable, actual: Callable, image: tuple[np.ndarray, np.ndarray], precision: str
) -> None:
    """Compare two runtimes on a picture, alone and as a batch with its mirror image.

    Raises:
        SystemExit: They differ by more than rounding, for precisions that have a limit.
    """
    pixels, sizes = image
    batch = np.ascontiguousarray(np.concatenate([pixels, pixels[..., ::-1]])), sizes.repeat(2, 0)
    limits = LIMITS[precision]
    tolerance = 0.1 if limits is None else limits.score
    for name, inputs in (('one image', (pixels, sizes)), ('a batch of two', batch)):
        agreement = compare(expected(*inputs), actual(*inputs), score_tolerance=tolerance)
        print(f'{name}: {agreement}')
        if limits and any(value > limit for value, limit in zip(agreement, limits, strict=True)):
            raise SystemExit(
                f'the exported model differs from PyTorch by more than rounding ({limits})'
            )


def export(
    model: nn.Module,
    cfg: Config,
    args: argparse.Namespace,
    size: tuple[int, int],
    classes: tuple[str, ...] | None,
) -> Path:
    """Write the ONNX file in the precision that was asked for."""
    path = args.out.with_suffix('.onnx')
    rest = args.opset, args.precision == 'half', classes, letterbox_of(cfg)
    if args.precision != 'int8':
        return export_onnx(model, path, size, *rest)
    pictures = calibration_set(cfg)
    chosen = spread(pictures, args.calibration)
    with tempfile.TemporaryDirectory() as folder:
        source = export_onnx(model, Path(folder) / 'single.onnx', size, *rest)
        read = read_inputs(pictures, chosen, size, 'Calibrating', takes_file_values(model))
        images = (inputs for inputs, _ in read)
        return quantize_onnx(source, path, images, args.backend)


@without_traceback(*EXPLAINED)
def main() -> None:
    args = parse_args()
    with without_traceback(*MISTAKES):
        check_writable(args.out.parent, 'the folder', '--out')
        cfg = load_config(args.config, args.cfg_options)
        size = network_size(cfg) if args.size is None else tuple(args.size)
        letterbox = letterbox_of(cfg)
        picture = args.image or example_image(cfg)
        model, classes = load_detector(cfg, args.checkpoint)
        check_size(size, model)
        channels = input_channels(model)
        loader = image_loader(cfg) if takes_file_values(model) else None
        image = read_image(picture, size, letterbox, loader)
    onnx_path = export(model, cfg, args, size, classes)
    print(f'{onnx_path}: ONNX, opset {args.opset}, input Bx{channels}x{size[0]}x{size[1]}')
    print(f'labels: {", ".join(classes) if classes else "names unknown"}')
    print(f'compared with PyTorch on {picture}')
    reference = PyTorchRuntime(DeployedDetector(model, letterbox=letterbox is not None))
    exported = {'ONNX Runtime': ONNXRuntime(onnx_path)}
    check(reference, exported['ONNX Runtime'], image, args.precision)
    if args.backend == 'openvino':
        print(f'{export_openvino(onnx_path, args.out)}: OpenVINO')
        exported = dict(OpenVINO=OpenVINORuntime(args.out))
        check(reference, exported['OpenVINO'], image, args.precision)
    elif args.backend == 'tensorrt':
        for kind, title in ENGINES[args.precision].items():
            print(f'{title}:')
            print(trtexec_command(onnx_path, args.out, size, args.max_batch, kind, channels))
        if is_installed('tensorrt'):
            engine = build_engine(onnx_path, args.out, size, args.max_batch, channels)
            print(f'{engine}: TensorRT')
            exported = dict(TensorRT=TensorRTRuntime(args.out))
            check(reference, exported['TensorRT'], image, args.precision)
    if args.evaluate:
        file_values = takes_file_values(model)
        figures = {
            name: evaluate(*checked_test_set(cfg, classes), runtime, size, name, file_values)
            for name, runtime in (dict(PyTorch=reference) | exported).items()
        }
        for name, found in figures.items():
            print(f'{name}: {", ".join(f"{key} {value:.4f}" for key, value in found.items())}')


if __name__ == '__main__':
    main()
