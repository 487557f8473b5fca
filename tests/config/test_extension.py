"""The promise of the docs: a model, a loss and a data set are each one Python and one YAML file, and nothing else."""

import sys

import pytest

from brats_lightning.config.build import build_data, build_segmentation

MODEL = """
from torch import nn

class OneLayer(nn.Module):
    def __init__(self, in_channels, out_channels, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(in_channels, width, 3, padding=1), nn.ReLU(), nn.Conv3d(width, out_channels, 1))

    def forward(self, image):
        return self.layers(image)
"""
LOSS = """
from torch.nn import functional as F

class SmoothedCrossEntropy:
    def __init__(self, smoothing):
        self.smoothing = smoothing

    def __call__(self, logits, target):
        return F.cross_entropy(logits.float(), target.long(), label_smoothing=self.smoothing)
"""
SOURCE = """
from brats_lightning.data.layouts.brats import find_cases

def first_timepoints(root):
    return [case for case in find_cases(root) if case.timepoint == "000"]
"""


@pytest.fixture
def additions(tmp_path, monkeypatch):
    """A folder with the user's own Python files and config folder."""
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "my_loss.py").write_text(LOSS)
    (tmp_path / "my_data.py").write_text(SOURCE)
    files = {
        "model/one_layer.yaml": "_target_: my_model.OneLayer\nin_channels: ${data.in_channels}\n"
        "out_channels: ${data.out_channels}\nwidth: 4\n",
        "loss/smoothed.yaml": "_target_: my_loss.SmoothedCrossEntropy\nsmoothing: 0.1\n",
        "data/first_timepoints.yaml": "defaults: [base, _self_]\ndescription: first timepoints\n"
        "source:\n  _target_: my_data.first_timepoints\n  root: ${data.root}\n",
    }
    for name, content in files.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_model", "my_loss", "my_data"):
        sys.modules.pop(name, None)


def test_one_python_and_one_yaml_file_each(additions, composed, shared_outputs):
    from brats_lightning.synthetic.phantom import phantom_cases
    from brats_lightning.train import train

    settings = dict(composed("data=phantom_tiny").data.source)
    settings.pop("_target_")
    cases = phantom_cases(**settings)
    root = next(iter(cases[0].images.values())).parent.parent

    search = f"hydra.searchpath=[file://{additions}/conf]"
    overrides = [
        search, "model=one_layer", "loss=smoothed", "data=first_timepoints", f"data.root={root}",
        "sampling.size=[16,16,16]", "inference.window=[24,24,24]", "data.workers=0", "data.patches_per_case=1",
        "trainer.max_steps=2", "trainer.val_check_interval=2", "logger=none",
    ]  # fmt: skip
    cfg = composed(*overrides, plain=True)
    data = build_data(cfg)
    assert 0 < len(data.source()) < len(cases)
    results = train(cfg)
    assert results["test/accuracy"] > 0
    assert type(build_segmentation(cfg, data).network).__name__ == "OneLayer"
