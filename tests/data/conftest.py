"""Three cases and an empty cache."""

import pytest

from brats_lightning.data.cache.store import Cache
from tests.data.tiny_cases import write_case


@pytest.fixture
def raw(tmp_path):
    for i in (1, 2, 3):
        write_case(tmp_path / "raw", f"BraTS-MET-0000{i}-000")
    return tmp_path / "raw"


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")
