from deim_mmdet.utils.classes import exchange_classes

from torch import nn


class Fast(nn.Linear):
    pass


class Own(nn.Linear):
    pass


def test_modules_of_the_class_change_and_stay_the_same_objects():
    linear, own = nn.Linear(2, 2), Own(2, 2)
    linear.mark = 1
    model = nn.ModuleList([nn.Sequential(linear), own, linear, nn.ReLU()])
    exchange_classes(model, {nn.Linear: Fast})
    assert [type(part) for part in model] == [nn.Sequential, Own, Fast, nn.ReLU]
    assert model[0][0] is model[2] is linear
    assert linear.mark == 1


def test_the_model_itself_changes():
    linear = nn.Linear(2, 2)
    exchange_classes(linear, {nn.Linear: Fast})
    assert type(linear) is Fast
