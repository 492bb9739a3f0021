from .cpu_amp_optim_wrapper import CpuAmpOptimWrapper
from .rule_optim_wrapper_constructor import RuleOptimWrapperConstructor, parameter_kinds

__all__ = ['CpuAmpOptimWrapper', 'RuleOptimWrapperConstructor', 'parameter_kinds']
