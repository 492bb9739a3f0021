"""The published training recipes, by model name."""

from pathlib import Path

from golden import read_json

FOLDER = Path(__file__).parent / 'data' / 'schedules'
MODELS = sorted(path.name[9:-8] for path in FOLDER.glob('schedule_*.json.gz'))
DFINE_MODELS = [name for name in MODELS if 'dfine' in name]


def schedule(model: str) -> dict:
    return read_json(FOLDER / f'schedule_{model}.json.gz')


# From the authors' configs: first epoch of the second matcher. The golden files don't hold it.
MATCHER_CHANGES = {
    **dict.fromkeys(('deimv2_atto', 'deimv2_femto', 'deimv2_pico'), 450),
    **dict(deimv2_n=136, deimv2_s=100, deimv2_m=80, deimv2_l=50, deimv2_x=45),
}


def published_numbers(model: str) -> dict:
    """Arguments of ``PublishedRecipe`` as the golden file of a model states them."""
    golden = schedule(model)
    policy = golden['policy']
    if 'mosaic_epoch' in policy:
        kind, stages = 'edgecrafter', (0, policy['mosaic_epoch'], policy['stop_epoch'])
    else:
        kind, epoch = 'deim', policy['epoch']
        stages = tuple(epoch) if isinstance(epoch, list) else (0, 0, epoch)
    # Baselines have no cosine, and so no epochs after it.
    restart = golden['epochs'] - (golden['lr_schedule'].get('no_aug_epoch') or golden['epochs'])
    return dict(
        kind=kind,
        epochs=golden['epochs'],
        batch_size=golden['total_batch_size'],
        stages=stages,
        warmup_iters=golden['lr_schedule']['warmup_iter'],
        lr_gamma=golden['lr_schedule']['lr_gamma'],
        ema_decay=golden['ema']['decay'],
        ema_warmup_iters=golden['ema']['warmups'],
        ema_restart_decay=golden['ema_restart_decay'],
        restart_epoch=restart if restart > stages[2] else None,
        matcher_change_epoch=MATCHER_CHANGES.get(model),
    )
