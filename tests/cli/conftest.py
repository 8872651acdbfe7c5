import pytest


@pytest.fixture(autouse=True)
def quiet_transformers():
    """Commands silence transformers before it is imported; in this process it already is."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
