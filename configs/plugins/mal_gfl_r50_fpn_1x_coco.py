# GFL with MAL in place of its quality focal loss.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['deim_mmdet'], allow_failed_imports=False)

model = dict(
    bbox_head=dict(
        # An anchor head that finds use_sigmoid here has no background class.
        loss_cls=dict(
            _delete_=True,
            type='MatchabilityAwareLoss',
            use_sigmoid=True,
            gamma=1.5,
            loss_weight=1.0,
        )
    )
)
