"""The published training recipes, by model name."""

from pathlib import Path

from golden import read_json

FOLDER = Path(__file__).parent / 'data' / 'schedules'
MODELS = sorted(path.name[9:-8] for path in FOLDER.glob('schedule_*.json.gz'))
DFINE_MODELS = [name for name in MODELS if 'dfine' in name]


def schedule(model: str) -> dict:
    return read_json(FOLDER / f'schedule_{model}.json.gz')


def published_numbers(model: str) -> dict:
    """Arguments of ``PublishedRecipe`` as the golden file of a model states them."""
    golden = schedule(model)
    policy = golden['policy']['epoch']
    return dict(
        epochs=golden['epochs'],
        batch_size=golden['total_batch_size'],
        stages=tuple(policy) if isinstance(policy, list) else (0, 0, policy),
        warmup_iters=golden['lr_schedule']['warmup_iter'],
        lr_gamma=golden['lr_schedule']['lr_gamma'],
        ema_decay=golden['ema']['decay'],
        ema_warmup_iters=golden['ema']['warmups'],
        ema_restart_decay=golden['ema_restart_decay'],
    )
