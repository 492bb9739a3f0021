"""Learning rate and weight decay by ordered rules over parameter names and kinds."""

import re

from mmcv.cnn import is_norm
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import nn

from ...models.layers.basic import RMSNorm
from ...utils.errors import UserError


def parameter_kinds(model: nn.Module) -> dict[str, str]:
    """Kind of each parameter by name: ``norm``, ``bias`` or ``weight``.

    All parameters of a normalisation layer are ``norm``. Of the others, those whose own name ends
    with ``bias`` (also ``in_proj_bias`` of attention) are ``bias``.
    """
    kinds = {}
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            normalises = is_norm(module) or isinstance(module, RMSNorm)
            by_name = 'bias' if name.endswith('bias') else 'weight'
            kinds[f'{module_name}.{name}'.lstrip('.')] = 'norm' if normalises else by_name
    return kinds


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class RuleOptimWrapperConstructor:
    """Builds an optimiser wrapper; the first matching rule sets a parameter's rate and decay.

    A rule is a dict with these keys, all optional:

    - ``name``: regular expression, searched in the parameter's name; default: all names.
    - ``kind``: ``norm``, ``bias`` or ``weight``, see :func:`parameter_kinds`; default: all kinds.
    - ``lr_mult``, ``decay_mult``: factors of learning rate and weight decay; default: 1.

    Parameters that no rule matches have the optimiser's own rate and decay. Frozen parameters
    (``requires_grad`` off) are left out. Parameters with the same rate and decay share one group,
    so that the optimiser runs over few, long lists.

    Example::

        optim_wrapper = dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=5e-4, weight_decay=1.25e-4),
            constructor='RuleOptimWrapperConstructor',
            paramwise_cfg=dict(rules=[
                dict(name=r'^backbone\\.', lr_mult=0.05),
                dict(kind='norm', decay_mult=0.0),
            ]))

    Args:
        optim_wrapper_cfg: Config of the wrapper; ``optimizer`` must hold ``lr`` and
            ``weight_decay``.
        paramwise_cfg: ``dict(rules=[...])`` or None.

    Raises:
        ValueError: A rule is malformed, or matches no parameter of the model.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.optim_wrapper_cfg.pop('optimizer'))
        for key in ('lr', 'weight_decay'):
            if key not in self.optimizer_cfg:
                raise UserError(f'optim_wrapper.optimizer needs {key}')
        paramwise_cfg = dict(paramwise_cfg or {})
        self.rules = [self._checked(rule) for rule in paramwise_cfg.pop('rules', [])]
        if paramwise_cfg:
            raise UserError(f'paramwise_cfg has {sorted(paramwise_cfg)}, but only rules is known')

    @staticmethod
    def _checked(rule: dict) -> dict:
        unknown = set(rule) - {'name', 'kind', 'lr_mult', 'decay_mult'}
        if unknown:
            raise UserError(
                f'paramwise_cfg rule {rule} has unknown keys {sorted(unknown)}: a rule may have '
                'name, kind, lr_mult and decay_mult'
            )
        if rule.get('kind') not in (None, 'norm', 'bias', 'weight'):
            raise UserError(f'paramwise_cfg rule {rule}: kind must be norm, bias or weight')
        try:
            re.compile(rule.get('name', ''))
        except re.error as error:
            raise UserError(f'paramwise_cfg rule {rule}: name is no pattern: {error}') from None
        return dict(rule)

    def param_groups(self, model: nn.Module) -> list[dict]:
        """Groups for the optimiser: ``params``, ``lr``, ``weight_decay``, in order of appearance.

        Raises:
            ValueError: A rule is not the first match of any parameter.
        """
        kinds = parameter_kinds(model)
        used = [False] * len(self.rules)
        groups: dict[tuple[float, float], dict] = {}
        for name, parameter in model.named_parameters():
            lr_mult = decay_mult = 1.0
            for index, rule in enumerate(self.rules):
                if rule.get('kind', kinds[name]) == kinds[name] and re.search(
                    rule.get('name', ''), name
                ):
                    used[index] = True
                    lr_mult = rule.get('lr_mult', 1.0)
                    decay_mult = rule.get('decay_mult', 1.0)
                    break
            if not parameter.requires_grad:
                continue
            group = groups.setdefault(
                (lr_mult, decay_mult),
                dict(
                    params=[],
                    lr=self.optimizer_cfg['lr'] * lr_mult,
                    weight_decay=self.optimizer_cfg['weight_decay'] * decay_mult,
                ),
            )
            group['params'].append(parameter)
        if not all(used):
            rule = self.rules[used.index(False)]
            raise UserError(
                f'paramwise_cfg rule {rule} applies to no parameter: no name matches, or an '
                'earlier rule takes them all. Correct or remove it'
            )
        return list(groups.values())

    def __call__(self, model: nn.Module) -> OptimWrapper:
        if is_model_wrapper(model):
            model = model.module
        optimizer = OPTIMIZERS.build(dict(self.optimizer_cfg, params=self.param_groups(model)))
        config = dict(self.optim_wrapper_cfg)
        config.setdefault('type', 'OptimWrapper')
        return OPTIM_WRAPPERS.build(config, default_args=dict(optimizer=optimizer))
