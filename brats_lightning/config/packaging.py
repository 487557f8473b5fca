"""The content of a package: checkpoints, the settings of ``predict``, and the recipes that build its image."""

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.checkpoint import read_checkpoint
from brats_lightning.config.ensemble_file import ensemble_members
from brats_lightning.config.postprocessing import as_config
from brats_lightning.inference.container import ENSEMBLE, SETTINGS, write_sums
from brats_lightning.inference.ensemble import Ensemble
from brats_lightning.inference.postprocessing import Postprocessing
from brats_lightning.runtime.files import make_folder, replace_file, write_text

# The environment is made in a stage of its own, so that the image does not hold the wheels beside it.
_DOCKERFILE = """\
# docker build -t NAME .      podman build -t NAME .
# An image for linux/amd64 with Python {python}, the version that the wheels are for.
ARG BASE={base}
FROM ${{BASE}} AS build
COPY wheels /wheels
RUN python3 -m venv /opt/brats/env \\
 && /opt/brats/env/bin/python -m pip install --no-index --no-cache-dir --find-links=/wheels /wheels/*.whl

FROM ${{BASE}}
COPY --from=build /opt/brats/env /opt/brats/env
COPY {files} /opt/brats/package/
COPY checkpoints /opt/brats/package/checkpoints
{environment}
ENTRYPOINT ["/opt/brats/env/bin/python", "-m", "brats_lightning.inference.container", "/opt/brats/package"]
"""

_APPTAINER = """\
# apptainer build NAME.sif apptainer.def
Bootstrap: docker
From: {{{{ BASE }}}}

%arguments
    BASE={base}

%files
    wheels /wheels
{files}
    checkpoints /opt/brats/package/checkpoints

%post
    python3 -m venv /opt/brats/env
    /opt/brats/env/bin/python -m pip install --no-index --no-cache-dir --find-links=/wheels /wheels/*.whl
    rm -r /wheels

%environment
{environment}

%runscript
    exec /opt/brats/env/bin/python -m brats_lightning.inference.container /opt/brats/package "$@"
"""

_ENVIRONMENT = {
    "HOME": "/tmp",  # what libraries keep there is thrown away
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "OMP_WAIT_POLICY": "passive",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
}


def write_package(cfg: DictConfig, folder: Path, rules: Postprocessing) -> None:
    """Fill a folder with everything but the wheels.

    Args:
        cfg: of the command ``package``.
        folder: that exists.
        rules: of post-processing.
    """
    write_text(folder / ENSEMBLE, _as_yaml("Its members", _members(cfg, folder)))
    write_text(folder / SETTINGS, _as_yaml("Settings of predict in the image", _settings(cfg, rules)))
    write_sums(folder)
    python = ".".join(platform.python_version_tuple()[:2])
    base = cfg.base or f"python:{python}-slim-bookworm"
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
    variables = [f"ENV {name}={value}" for name, value in _ENVIRONMENT.items()]
    text = _DOCKERFILE.format(python=python, base=base, files=" ".join(names), environment="\n".join(variables))
    write_text(folder / "Dockerfile", text)
    variables = [f"    export {name}={value}" for name, value in _ENVIRONMENT.items()]
    files = "\n".join(f"    {name} /opt/brats/package/{name}" for name in names)
    text = _APPTAINER.format(base=base, files=files, environment="\n".join(variables))
    write_text(folder / "apptainer.def", text)


def foreign_modules(ensemble: Ensemble, rules: Postprocessing) -> list[str]:
    """The modules, besides this program and PyTorch, that networks and steps of post-processing come from."""
    configs = [*(model.config["model"] for model in ensemble.models), as_config(rules)]
    targets = {target for config in configs for target in _targets(config)}
    return sorted({target.partition(".")[0] for target in targets} - {"brats_lightning", "torch"})


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        yield from [node["_target_"]] if "_target_" in node else []
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _members(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The ensemble's description; each of its checkpoints is written into the folder, once."""
    make_folder(folder / "checkpoints")
    names: dict[Path, str] = {}
    members = []
    for member in ensemble_members([cfg.ckpt] if isinstance(cfg.ckpt, str) else cfg.ckpt):
        if member.ckpt not in names:
            names[member.ckpt] = f"checkpoints/{len(names) + 1}.ckpt"
            _write_weights(member.ckpt, folder / names[member.ckpt])
        own = {"regions": list(member.regions), "inference": dict(member.inference)}
        given = {name: value for name, value in own.items() if value}
        members.append({"ckpt": names[member.ckpt], "weight": member.weight, **given})
    return {"members": members}


def _write_weights(source: Path, path: Path) -> None:
    """A checkpoint without all that only training needs, such as the optimiser's state and the names of its cases."""
    checkpoint = read_checkpoint(source)
    kept = {name: checkpoint[name] for name in ("config", "format")}
    kept["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("network.")}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save(kept, file)

    replace_file(path, write)


def _settings(cfg: DictConfig, rules: Postprocessing) -> dict[str, Any]:
    """A config of ``predict``."""
    chosen: Any = OmegaConf.to_container(cfg)
    names = ("device", "devices", "precision", "affine_tolerance", "inference", "trust")
    same = {name: chosen[name] for name in names}
    return {"defaults": ["predict", "_self_"], **same, "postprocessing": as_config(rules) | {"_convert_": "all"}}


def _as_yaml(title: str, content: Mapping[str, Any]) -> str:
    return f"# {title}\n" + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
