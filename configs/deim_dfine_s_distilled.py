# DEIM-D-FINE-S that learns from a frozen DINOv3, too, as RT-DETRv4-S does. Training needs timm, and
# DINOv3's weights, which are under Meta's licence. The network is deim_dfine_s's. For other sizes,
# change the base; X has in_channels=384. Weight and share are RT-DETRv4-S's numbers; see
# docs/starting_weights.md for what of its recipe is ours.
_base_ = './deim_dfine_s.py'

distillation = dict(
    type='TeacherDistillation',
    teacher=dict(type='TimmTeacher', name='vit_base_patch16_dinov3.lvd1689m'),
    in_channels=256,
    teacher_channels=768,
    weight=5.0,
    target_share=0.11,
    tolerance=0.01,
)
model = dict(bbox_head=dict(criterion=dict(terms=dict(loss_distill=distillation))))
custom_hooks = [*_base_.custom_hooks, dict(type='DistillationWeightHook')]
