# Own data in which some classes are rare. A class is rare if less than 10 % of the images have it.
# Images with such a class come several times an epoch (repeat factor sqrt(0.1 / share of images),
# LVIS, arXiv 1908.03195).
_base_ = '../deim_dfine_custom.py'

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='ClassBalancedDataset',
            oversample_thr=0.1,
            dataset=_base_.train_dataloader.dataset.dataset,
        )
    )
)
