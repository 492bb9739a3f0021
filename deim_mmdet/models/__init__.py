from . import backbones, dense_heads, losses, necks, task_modules

__all__ = ['backbones', 'dense_heads', 'losses', 'necks', 'task_modules']
