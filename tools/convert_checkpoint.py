"""Convert a checkpoint of the reference or of transformers to this package, or back.

    python tools/convert_checkpoint.py SRC OUT [--config NAME] [--classes A B ... | --ann-file FILE]
    python tools/convert_checkpoint.py SRC OUT --reverse

SRC is a path or an https:// address. It is a checkpoint of the reference implementations of DEIM,
D-FINE, RT-DETRv2 or RT-DETRv4, ImageNet weights of their backbones, or a safetensors file or folder
of transformers. The tool finds out the model from the parameters. With --reverse, SRC is a
checkpoint of this package and OUT one that the reference loads.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from deim_mmdet.checkpoints.architectures import (
    Architecture,
    complete,
    identify,
    tells_recipe,
)
from deim_mmdet.checkpoints.class_names import default_classes
from deim_mmdet.checkpoints.convert import (
    BACKBONE,
    HUGGING_FACE,
    OURS,
    PROJECTOR,
    Weights,
    classes_of_annotations,
    count_classes,
    find_weights,
    make_checkpoint,
    to_our_names,
    trained_size,
)
from deim_mmdet.checkpoints.files import file_name, read_checkpoint, write_checkpoint
from deim_mmdet.checkpoints.huggingface import classes_beside
from deim_mmdet.checkpoints.reverse import to_reference_backbone, to_reference_state_dict
from deim_mmdet.utils.text import some

from torch import Tensor


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('src', help='checkpoint to convert: a path or an https:// address')
    parser.add_argument('out', type=Path, help='checkpoint to write')
    parser.add_argument(
        '--reverse', action='store_true', help="from this package's naming to the reference's"
    )
    parser.add_argument(
        '--config',
        help='config of the model, a path or a name such as deim_dfine_l; needed where the '
        'parameters alone do not tell',
    )
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        '--classes',
        nargs='+',
        help="class names in the order of the scores; COCO's for 80 scores, Objects365's for 366",
    )
    names.add_argument('--ann-file', type=Path, help='take them from annotations in COCO format')
    args = parser.parse_args(arguments)
    if Path(args.src).resolve() == args.out.resolve():
        parser.error('SRC and OUT are the same file')
    if args.reverse and (args.classes or args.ann_file):
        parser.error("--classes and --ann-file: the reference's checkpoints hold no class names")
    return args


def class_names(args: argparse.Namespace, num_classes: int) -> Sequence[str] | None:
    """Class names from the command line, from beside the checkpoint, or those of 80 or 366 scores.

    Raises:
        ValueError: Their number isn't that of the checkpoint's classes.
    """
    if args.ann_file:
        return classes_of_annotations(args.ann_file, num_classes)
    classes = args.classes or classes_beside(args.src) or default_classes(num_classes)
    if classes is not None and len(classes) != num_classes:
        raise ValueError(
            f'{len(classes)} class names for a checkpoint of {num_classes} classes: name each by '
            '--classes, or give the annotations that it was trained with by --ann-file'
        )
    return classes


def convert(args: argparse.Namespace, source: dict) -> dict:
    """The checkpoint of this package."""
    weights = find_weights(source)
    if weights.naming == OURS:
        raise ValueError('it is a checkpoint of this package already; --reverse converts it back')
    state_dict = to_our_names(weights)
    model = identify(
        state_dict,
        config=args.config,
        file_name=file_name(args.src),
        deim=trained_by_deim(weights),
    )
    report(weights, state_dict, model)
    if model.doubt:
        print(f'warning: {model.doubt}')
    state_dict = complete(state_dict, model.shapes)
    num_classes = count_classes(state_dict)
    if num_classes is None:
        return make_checkpoint(state_dict, None)
    classes = class_names(args, num_classes)
    print(f'classes: {num_classes}, {", ".join(classes[:5]) if classes else "names unknown"}')
    return make_checkpoint(
        state_dict, classes, experiment_name=model.name, cfg=model.config.pretty_text
    )


def trained_by_deim(weights: Weights) -> bool | None:
    """Whether the names tell a model of DEIM's recipe (RT-DETRv4) or a baseline; None if not."""
    if weights.naming == HUGGING_FACE:
        return False
    return True if any(name.startswith(PROJECTOR) for name in weights.state_dict) else None


def convert_back(args: argparse.Namespace, source: dict) -> dict:
    """The checkpoint of the reference; of a backbone, its parameters alone."""
    weights = find_weights(source)
    if weights.naming not in (OURS, BACKBONE):
        raise ValueError(
            '--reverse needs a checkpoint of this package, but the names of this one are '
            f'{weights.naming or "unknown"}: {some(sorted(weights.state_dict), 3)}'
        )
    # If DEIM and its baseline have the same parameters, the names are the same too: either will do.
    name = (source.get('meta') or {}).get('experiment_name') or ''
    if not tells_recipe(name):
        name = 'deim'
    ours = to_our_names(weights) if weights.naming == OURS else weights.state_dict
    model = identify(ours, config=args.config, file_name=name)
    if model.config is None:
        state_dict = to_reference_backbone(ours)
    else:
        size = None if args.config else trained_size(source)
        state_dict = to_reference_state_dict(
            ours,
            strides=model.config.model.neck.feat_strides,
            num_points=model.config.model.bbox_head.decoder.num_points,
            image_size=size or model.config.get('image_size', 640),
        )
    report(weights, state_dict, model)
    return state_dict if model.config is None else dict(model=state_dict)


def report(weights: Weights, converted: Mapping[str, Tensor], model: Architecture) -> None:
    """Print what was found, and how many entries go from which module to which."""
    print(f'found: {len(weights.state_dict)} entries, {weights.naming} names, in {weights.part}')
    print(f'model: {model.name}')
    new_names = {id(tensor): name for name, tensor in converted.items()}
    modules, others = Counter(), []
    for name, tensor in weights.state_dict.items():
        if id(tensor) in new_names:
            modules[module_of(name), module_of(new_names[id(tensor)])] += 1
        else:
            others.append(name)
    for (theirs, ours), count in modules.items():
        print(f'  {count:4} {theirs} → {ours}')
    if others:
        print(f'  {len(others):4} joined, derived or left out: {some(others, 4)}')


def module_of(name: str) -> str:
    """The part of a parameter's name that stands for a module of the model."""
    return '.'.join(name.split('.')[:2])


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        source = read_checkpoint(args.src)
        checkpoint = convert_back(args, source) if args.reverse else convert(args, source)
        write_checkpoint(checkpoint, args.out)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f'{args.src} was not converted: {error}')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
