from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_file():
    """The path of one of the real datasets, by its name."""

    def find(name):
        path = SHARED / f"{name}.txt"
        if not path.exists():
            pytest.skip(f"the dataset {path} is not here")
        return path

    return find
