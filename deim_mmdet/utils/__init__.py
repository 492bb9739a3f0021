from .stage import Stage

__all__ = ['Stage']
