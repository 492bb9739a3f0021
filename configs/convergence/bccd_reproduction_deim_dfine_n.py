# DEIM-D-FINE N in the comparison with the reference implementation on BCCD.
_base_ = './_base_/bccd_reproduction.py'
