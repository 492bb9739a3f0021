"""What can be wrong with the data of a config, found before training or testing starts.

What a data set itself refuses or drops is defined in :mod:`deim_mmdet.datasets`, once for both.
"""
