"""Shapes on signatures are checked while the tests run."""

import os

from jaxtyping import install_import_hook

install_import_hook("brats_lightning", "beartype.beartype")
os.environ.setdefault("MPLBACKEND", "Agg")
