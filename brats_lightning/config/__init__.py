"""Hydra configs: composing, checking and building them."""

import sys
from pathlib import Path

# Hydra finds plugins in the namespace package `hydra_plugins`, of which this folder holds our part. It is done here and
# not in a command, as the processes that launchers start import this room before they need the plugins.
sys.path.append(str(Path(__file__).with_name("plugins")))
