from .stage import SharedStage, Stage

__all__ = ['SharedStage', 'Stage']
