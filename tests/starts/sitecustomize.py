"""Python imports this module when it starts, if its folder is in PYTHONPATH."""

from starting import leave_configs_unformatted, leave_out_transformers

leave_out_transformers()
leave_configs_unformatted()
