# DEIMv2 N: D-FINE N with sums in its neck and another decoder. Pico to Atto inherit it.
_base_ = './dfine_hgnetv2_n.py'

model = dict(
    neck=dict(kind='deimv2_n'),
    bbox_head=dict(
        query_selection=dict(project=False),
        decoder=dict(type='DEIMv2Decoder'),
        criterion=dict(late_matcher=dict(type='ScoreOverlapMatcher')),
    ),
)
