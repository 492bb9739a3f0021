import mmengine.config.config
import pytest


@pytest.fixture(scope='module')
def plain_config_text():
    """Leaves the config in checkpoints unformatted, which is most of the time of a toy training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.config, 'FormatCode', lambda text, **style: (text, True))
        yield
