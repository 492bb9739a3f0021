from .fuse import fuse, fuse_for_export

__all__ = ['fuse', 'fuse_for_export']
