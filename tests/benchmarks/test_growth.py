from tests.benchmarks.growth import requirements
from tests.benchmarks.measure import Result


def test_requirements():
    medians = {"cache": 30, "patches read": 100, "index": 0.04, "open": 0.5, "start": 7, "held": 1000, "worker": 250}
    rows = {name: Result("m", name, "t", "u", {"ours": [value]}, [], "–") for name, value in medians.items()}
    text = requirements(rows)
    assert "39 GB of disk" in text  # 1,300 × 30 MB
    assert "0.25 GB: 9 GB for 8 GPUs" in text  # 8 × (1 GB + 2 workers × 4 patches × 19 MB)
    assert "sustains 200, 1600 on all, with 24 CPU cores" in text
    assert requirements({name: rows[name] for name in medians if name != "cache"}) == ""
