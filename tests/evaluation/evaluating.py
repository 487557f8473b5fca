"""What the command ``evaluate`` does, in this process; the structure of a page."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.evaluate import evaluate
from brats_lightning.evaluation.scoring import ScoredCase
from brats_lightning.metrics.lesions import LesionRow

NAN = float("nan")


def run(predictions: Path | str, references: Path, output: Path, *overrides: str) -> dict[str, Any]:
    """Evaluate in one process; the overrides are those of the command line."""
    register_resolvers()
    told = [f"predictions={predictions}", f"references={references}", f"output={output}", "processes=1", "pictures=1"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("evaluate", [*told, "resamples=50", *overrides])
    return evaluate(resolved(cfg))


def lesion(number=1, volume=10.0, dice=0.0, false_positive=False, centre=(1, 2, 3)):
    return LesionRow(number, false_positive, volume, dice >= 0.1, dice, centre)


def scored(name, *rows, dice=NAN, voxel=NAN, missing=False):
    official = {"brats2024": {"et": {"LesionWise_Score_Dice": dice}}}
    return ScoredCase(name, name, missing, official, {"et": {"dice": voxel}}, {"et": list(rows)}, {})


VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """Checks that elements close in order; collects texts, tags and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
