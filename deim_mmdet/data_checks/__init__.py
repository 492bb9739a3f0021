"""Finds what is wrong with the data of a config, before training or testing starts.

:mod:`deim_mmdet.datasets` defines what a data set refuses or drops; the checks use that.
"""
