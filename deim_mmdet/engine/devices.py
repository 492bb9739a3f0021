"""How a run uses its device: layout of weights, precision, optimiser, wrapper of processes."""

import argparse
import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmdet.registry import MODEL_WRAPPERS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper
from torch import nn

from ..datasets.collate import stacking
from ..deployment.cpu import optimize_for_cpu
from ..utils.components import component_class

# Arguments of torch's optimisers that choose how a step is computed.
WAYS_TO_STEP = ('fused', 'foreach', 'capturable', 'differentiable')


def check_gpu_found(parser: argparse.ArgumentParser, option: str) -> None:
    """End the program with the parser's message for ``option`` where torch finds no GPU."""
    if not torch.cuda.is_available():
        parser.error(f'{option}: torch finds no GPU')


def set_precision(device: str, env_cfg: Mapping[str, Any]) -> None:
    """Let a GPU compute products of float32 numbers in TF32, or not, as ``env_cfg.tf32`` says.

    TF32 keeps float32's range and 10 of its 23 bits of precision. Without ``tf32`` in the config
    torch's defaults stay.

    Args:
        device: As :func:`mmengine.device.get_device` names it.
        env_cfg: ``env_cfg`` of the config.
    """
    if device == 'cuda' and env_cfg.get('tf32') is not None:
        torch.set_float32_matmul_precision('high' if env_cfg['tf32'] else 'highest')
        torch.backends.cudnn.allow_tf32 = env_cfg['tf32']


def loader_options(dataloader: Mapping[str, Any], device: str) -> dict[str, Any]:
    """A data loader's config with the defaults for a device, and without options that clash.

    Args:
        dataloader: The config, which stays as it is.
        device: As :func:`mmengine.device.get_device` names it.
    """
    # torch warns where no device can use pinned memory.
    options = {'pin_memory': device not in ('cpu', 'mps'), **stacking(dataloader)}
    if not options.get('num_workers'):
        # Both need workers; an option may have set the number of workers to 0.
        for name in ('persistent_workers', 'prefetch_factor'):
            options.pop(name, None)
    if options.get('batch_sampler') is not None and options.pop('drop_last', False):
        # torch refuses both, and base configs say it to the loader.
        options['batch_sampler'] = {'drop_last': True, **options['batch_sampler']}
    return options


def laid_out(model: nn.Module, device: str, env_cfg: Mapping[str, Any]) -> nn.Module:
    """The model in the form that is fastest on its device.

    On a GPU with ``env_cfg.channels_last`` the weights of convolutions get the layout of the images
    from the data loader, and features follow. On a CPU the model gets the form of
    :func:`~deim_mmdet.deployment.cpu.optimize_for_cpu`.

    Args:
        model: The model, changed in place.
        device: As :func:`mmengine.device.get_device` names it.
        env_cfg: ``env_cfg`` of the config.
    """
    if device == 'cpu':
        return optimize_for_cpu(model)
    if device == 'cuda' and env_cfg.get('channels_last'):
        # Gradients of weights then have the strides that DistributedDataParallel expects. It warns
        # otherwise, see https://github.com/pytorch/pytorch/issues/157862.
        return model.to(memory_format=torch.channels_last)
    return model


def wrapper_options(given: Mapping[str, Any] | None, device: str, find_unused: bool) -> dict:
    """Config of the wrapper for several processes.

    Args:
        given: ``model_wrapper_cfg`` of the config. Its options go before those here, which are
            mmengine's and ``gradient_as_bucket_view``: gradients are kept once, not twice.
        device: As :func:`mmengine.device.get_device` names it.
        find_unused: ``find_unused_parameters`` of the config.
    """
    options = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=find_unused,
        gradient_as_bucket_view=True,
    )
    given = dict(given or {})
    if 'type' not in given or component_class(MODEL_WRAPPERS, given) is MMDistributedDataParallel:
        given = {**options, **given}
    return dict(given, device_ids=None) if device == 'cpu' else given


def optimizer_options(optim_wrapper: Any, device: str) -> Any:
    """Config of an optimiser's wrapper for a device.

    On a GPU and on a CPU the optimiser gets ``fused=True``, one kernel for many parameters, where
    its class takes it and the config chooses no other way to step. On a CPU ``AmpOptimWrapper``
    becomes ``CpuAmpOptimWrapper``.

    Args:
        optim_wrapper: The config, which stays as it is; anything else is returned.
        device: As :func:`mmengine.device.get_device` names it.
    """
    if not isinstance(optim_wrapper, Mapping):
        return optim_wrapper
    optim_wrapper = copy.deepcopy(optim_wrapper)
    optimizer = optim_wrapper.get('optimizer')
    kind = component_class(OPTIMIZERS, optimizer)
    if (
        device in ('cuda', 'cpu')
        and kind is not None
        and 'fused' in inspect.signature(kind).parameters
        and not any(way in optimizer for way in WAYS_TO_STEP)
    ):
        optimizer['fused'] = True
    if device == 'cpu' and component_class(OPTIM_WRAPPERS, optim_wrapper) is AmpOptimWrapper:
        print_log('Mixed precision in bfloat16, on the CPU', logger='current')
        optim_wrapper['type'] = 'CpuAmpOptimWrapper'
        for option in ('loss_scale', 'dtype'):
            optim_wrapper.pop(option, None)
    return optim_wrapper
