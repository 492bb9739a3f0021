_base_ = './rtdetrv2_resnetvd_r50.py'

model = dict(neck=dict(expansion=0.5), bbox_head=dict(decoder=dict(num_layers=3)))
