# The convergence study on scenes with many handwritten digits.
_base_ = './study_sparse.py'

data_root = 'work_dirs/convergence/data/crowded/'

train_dataloader = dict(dataset=dict(dataset=dict(data_root=data_root)))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator
