# DEIM-D-FINE on your own data, started from D-FINE's weights of Objects365. Copy
# deim_dfine_custom.py, set your data and the size there, and name the copy here. Rows of classes
# that Objects365 knows by name are kept; the log says which.
_base_ = './deim_dfine_custom.py'

# The size that the other file names: s, m, l or x.
size = 's'
max_epochs = 24

# ------------------------------------------------------------------------------------------------

# Like the weights: ReLU instead of SiLU, and in L and X frozen norms.
model = dict(
    backbone=dict(init_cfg=None),
    bbox_head=dict(query_selection=dict(act='ReLU'), decoder=dict(act='ReLU')),
)
if size in ('l', 'x'):
    model['backbone'].update(frozen_stem=True, norm_frozen=True)

recipe = dict(_base_.recipe_from_objects365)
if not _base_.dense_o2o:
    recipe['stages'] = (0, 0, max(recipe['stages']))
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=2.5e-4))

release = 'https://github.com/Peterande/storage/releases/download/dfinev1.0/'
load_from = f'{release}dfine_{size}_obj365{"_e25" if size == "l" else ""}.pth'
