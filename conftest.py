"""What notebooks and tests need of pytest."""
import pytest


@pytest.fixture
def one_thread():
    "Two torch threads on two busy cores are slower than one."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items):
    "nbval refuses a cell that has outputs but no execution count; nbdev_clean removes the counts and keeps the outputs."
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and cell.get("outputs") and cell.get("execution_count") is None:
            cell["execution_count"] = 1
