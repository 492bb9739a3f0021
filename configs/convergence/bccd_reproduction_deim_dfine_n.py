# DEIM-D-FINE N of the comparison on BCCD that the reference implementation was run in.
_base_ = './_base_/bccd_reproduction.py'
