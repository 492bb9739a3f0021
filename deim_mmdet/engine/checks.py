"""Checks before training or testing starts, with one clear message each."""

from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from ..models.detectors import DEIMDetector
from ..utils.errors import UserError, UserTypeError
from ..utils.text import some


def bare_model(model: nn.Module) -> nn.Module:
    """The detector under distributed and test-time-augmentation wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def bare_detector(hook: Hook, model: nn.Module) -> DEIMDetector:
    """The :class:`DEIMDetector` under distributed wrappers, for a hook that works on no other.

    Raises:
        TypeError: The model is another; the message names it and the hook.
    """
    detector = bare_model(model)
    if not isinstance(detector, DEIMDetector):
        raise UserTypeError(
            f'{type(hook).__name__} works on a DEIMDetector, but the model is a '
            f"{type(detector).__name__}: set model.type='DEIMDetector', if its head is one of this "
            "package's; otherwise leave the hook, or the option that adds it, out"
        )
    return detector


def parts_of_dataset(dataset) -> Iterator[Any]:
    """A data set and all that it wraps."""
    yield dataset
    if isinstance(dataset, BaseDataset):
        return
    for child in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if child is not None:
            yield from parts_of_dataset(child)


def base_datasets(dataset) -> Iterator[BaseDataset]:
    """The data sets that hold annotations, without their wrappers."""
    return (part for part in parts_of_dataset(dataset) if isinstance(part, BaseDataset))


def class_names(dataset) -> tuple[str, ...] | None:
    """Names of a data set's classes in the order of its labels; None where it states none."""
    metainfo = getattr(dataset, 'metainfo', None) or {}
    # mmdet's ConcatDataset has a list, one entry for each part, where its parts differ.
    first = metainfo[0] if isinstance(metainfo, list) else metainfo
    classes = first.get('classes')
    return None if classes is None else tuple(classes)


def check_counts_epochs(hook: Hook, loop: BaseLoop) -> None:
    """Refuse a training loop that doesn't count epochs, for a hook that needs them.

    Raises:
        TypeError: It doesn't; the message names loop, hook and the remedy.
    """
    if not isinstance(loop, EpochBasedTrainLoop):
        raise UserTypeError(
            f'{type(hook).__name__} acts by epoch, but the training loop is '
            f"{type(loop).__name__}: set train_cfg=dict(type='EpochBasedTrainLoop', "
            'max_epochs=...)'
        )


def evaluates_after(runner: Runner, done: int) -> bool:
    """Whether a training is evaluated once so much is finished.

    Args:
        runner: The training.
        done: Number of epochs; of iterations where the training loop doesn't count epochs.
    """
    loop = runner.train_loop
    if runner.val_loop is None or not 0 < done >= loop.val_begin:
        return False
    # The loop chooses among its dynamic_intervals only when it is there.
    interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, done + 1) - 1]
    end = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    return done % interval == 0 or done == end


def check_single(hooks: Iterable[Hook], kind: type[Hook]) -> None:
    """Refuse a second hook of a kind of which a training takes one.

    Two averages of the weights, for example, would exchange each other's with the model's.

    Raises:
        ValueError: There is one; the message names the hooks and the remedy.
    """
    found = [type(hook).__name__ for hook in hooks if isinstance(hook, kind)]
    if len(found) > 1:
        raise UserError(
            f'the hooks {" and ".join(found)} do the same work, and a training takes one of them: '
            "leave the others out of custom_hooks. To change an option of a base config's hook: "
            f'custom_hooks=[dict(hook, ...) if hook.type == {found[0]!r} else hook '
            'for hook in _base_.custom_hooks]'
        )


def check_single_optimizer(owner: Hook | Runner, optim_wrapper: OptimWrapper) -> None:
    """Refuse a training with several optimisers, for a runner or a hook that works with one.

    Raises:
        TypeError: There are several; the message names the wrapper and its owner.
    """
    # mmengine's class of several wrappers derives from that of one.
    if isinstance(optim_wrapper, OptimWrapperDict):
        raise UserTypeError(
            f'{type(owner).__name__} works with one optimiser, but optim_wrapper is a '
            f'{type(optim_wrapper).__name__}'
        )


def check_classes(model: nn.Module, dataset, split: str) -> None:
    """Compare the number of classes of the head with that of the data set.

    Raises:
        ValueError: They differ; the message names both and the classes.
    """
    expected = getattr(getattr(model, 'bbox_head', None), 'num_classes', None)
    classes = class_names(dataset)
    if expected is None or classes is None or expected == len(classes):
        return
    raise UserError(
        f'model.bbox_head.num_classes={expected}, but the {split} data set has {len(classes)} '
        f'classes ({some(classes, 8)}): set model.bbox_head.num_classes={len(classes)}, or the '
        "class names in the data set's metainfo=dict(classes=(...))"
    )


def check_object_counts(model: nn.Module, dataset) -> None:
    """Refuse a data set with more objects in an image than the head has queries.

    The matching is one-to-one: objects beyond the number of queries would never be learnt.

    Raises:
        ValueError: There is such an image; the message names it and both numbers.
    """
    num_queries = getattr(getattr(model, 'bbox_head', None), 'num_queries', None)
    if num_queries is None:
        return
    for base in base_datasets(dataset):
        for index in range(len(base)):
            info = base.get_data_info(index)
            instances = info.get('instances', ())
            if len(instances) <= num_queries:
                continue
            count = sum(not instance.get('ignore_flag') for instance in instances)
            if count > num_queries:
                raise UserError(
                    f'{info.get("img_path")} has {count} objects, but the head only '
                    f'{num_queries} queries: set model.bbox_head.query_selection.num_queries to at '
                    f'least {count}, or leave the image out'
                )


def check_fills_a_batch(dataloader: DataLoader) -> None:
    """Refuse a training set that doesn't fill a single batch.

    Raises:
        ValueError: It doesn't; the message names both numbers.
    """
    if len(dataloader) == 0:
        raise UserError(
            f'the training set has {len(dataloader.dataset)} images, too few for one batch of '
            f'{dataloader.batch_size or dataloader.batch_sampler.batch_size} a process: lower '
            'train_dataloader.batch_size'
        )


def check_resumable(checkpoint: dict) -> None:
    """Refuse to resume from a checkpoint without the progress of a training.

    Raises:
        ValueError: The checkpoint holds weights alone.
    """
    if 'epoch' not in (checkpoint.get('meta') or {}):
        raise UserError(
            'the checkpoint holds weights alone, without the progress of a training run, and '
            'cannot be resumed: start a new run from it by load_from, without resume'
        )


def non_finite_names(values: Mapping[Any, Any], prefix: str = '') -> list[str]:
    """Names of tensors that hold NaN or an infinity.

    Args:
        values: Tensors by name. Mappings among them are searched too; a name then begins with that
            of its mapping. Other values are left out.
        prefix: Begins all names.
    """
    names = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            names += non_finite_names(value, f'{prefix}{name}.')
        elif isinstance(value, torch.Tensor) and not value.isfinite().all():
            names.append(f'{prefix}{name}')
    return names


def check_finite(model: nn.Module, checkpoint: dict) -> None:
    """Refuse NaN and infinity in the parameters, averages and optimiser of a checkpoint.

    Raises:
        ValueError: There are some; the message says where.
    """
    own = model.state_dict()
    state = checkpoint.get('state_dict', checkpoint)
    parts = dict(
        state_dict={key: state[key] for key in state if key.removeprefix('module.') in own},
        **{key: checkpoint.get(key) or {} for key in ('ema_state_dict', 'optimizer')},
    )
    names = non_finite_names(parts)
    if names:
        raise UserError(
            f'the checkpoint holds NaN or infinite numbers, in {some(names)}: a '
            'training had diverged before it was saved. Take an earlier one'
        )


def check_checkpoint(model: nn.Module, checkpoint: dict) -> None:
    """Compare the shapes of a checkpoint's parameters with the model's.

    Raises:
        ValueError: No parameter of the model is in the checkpoint, or shapes differ. If another
            number of classes is the reason, the message names both numbers.
    """
    source = checkpoint.get('state_dict', checkpoint)
    source = {name.removeprefix('module.'): value for name, value in source.items()}
    own = {name: value for name, value in model.state_dict().items() if name in source}
    if not own:
        raise UserError(
            'the checkpoint holds no parameter of this model (its names begin with '
            f'{some(sorted({name.split(".")[0] for name in source}))}): take the config that the '
            'checkpoint was trained with'
        )
    differing = [
        (name, tuple(source[name].shape), tuple(value.shape))
        for name, value in own.items()
        if hasattr(source[name], 'shape') and source[name].shape != value.shape
    ]
    if not differing:
        return
    num_classes = getattr(getattr(model, 'bbox_head', None), 'num_classes', None)
    for name, theirs, ours in differing:
        if name.startswith('bbox_head') and ours[:1] == (num_classes,) and ours[1:] == theirs[1:]:
            raise UserError(
                f'the checkpoint was trained for {theirs[0]} classes, but '
                f'model.bbox_head.num_classes={num_classes}, e.g. in {name}: take a config for its '
                f'{theirs[0]} classes, or train on from it first (load_from)'
            )
    name, theirs, ours = differing[0]
    raise UserError(
        f'{len(differing)} parameters of the checkpoint have other shapes than the model, e.g. '
        f'{name}: {theirs} instead of {ours}. Take the config that it was trained with'
    )
