# The published recipe of DEIMv2 X. S, M and L state what differs, all of them the rates of their
# vision transformer.
_base_ = './deimv2.py'

# The rules for all parameters but the vision transformer's. The rest of the backbone has the whole
# rate and decay; only the adapter's shifts have no decay.
other_rules = [
    dict(name=r'^backbone\.sta\..*\.bias$', decay_mult=0.0),
    dict(name=r'^backbone\.'),
    dict(kind='norm', decay_mult=0.0),
    dict(kind='bias', decay_mult=0.0),
]
