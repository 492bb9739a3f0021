"""Which of torch's operators start a kernel on a GPU."""

#: Names of those that don't: views and allocations.
# fmt: off
NO_KERNELS = {
    'view', 'reshape', 'detach', 'transpose', 't', 'permute', 'slice', 'select', 'unsqueeze',
    'expand', 'alias', 'as_strided', 'split', 'split_with_sizes', 'unbind', 'squeeze',
    '_unsafe_view', 'lift_fresh', 'empty', 'empty_like', 'new_empty', 'empty_strided',
    'new_empty_strided', 'chunk', 'unfold', 'diagonal', 'set_',
}
