from deim_mmdet.utils.shared import SharedIntegers

import pytest
import torch


def change(shared):
    shared.set(1 << 33, -7)


@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_another_process_sees_and_makes_changes(start):
    shared = SharedIntegers(3, -1)
    assert shared.get() == [3, -1]
    context = torch.multiprocessing.get_context(start)
    process = context.Process(target=change, args=(shared,))
    process.start()
    process.join()
    assert shared.get() == [1 << 33, -7]
