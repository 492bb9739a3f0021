"""What can be wrong with a data set: one definition for training and for ``check_dataset.py``."""
