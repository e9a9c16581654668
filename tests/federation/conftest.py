import pytest

import client_app
from fedddpm_app.inprocess.grid import InProcessGrid


@pytest.fixture
def grid(run_config):
    """Four nodes with the real ClientApp."""
    return InProcessGrid(client_app.app, 4, run_config)
