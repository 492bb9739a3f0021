"""Errors that a user's mistake raises; commands end with their message alone."""


class UserError(ValueError):
    """A config, an option, a checkpoint or data don't fit; the message says what to change."""


class UserTypeError(UserError, TypeError):
    """A part of the training is of a kind that another part can't work with."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint can't be read: it is damaged, or could run code, or can't be fetched."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that a resumed training needs isn't there."""


class MissingPackageError(UserError, ImportError):
    """An option needs a package that isn't installed; the message has the command."""
