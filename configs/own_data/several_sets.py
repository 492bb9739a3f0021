# Two annotation files with their own image folders, as one training set. The images of the second,
# smaller file come three times an epoch. Objects of both files keep their classes by name.
_base_ = '../deim_dfine_custom.py'

first = _base_.train_dataloader.dataset.dataset
second = dict(first, ann_file='annotations/train_2.json', data_prefix=dict(img='images/train_2/'))
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='ConcatDataset',
            datasets=[first, dict(type='RepeatDataset', times=3, dataset=second)],
        )
    )
)
