"""An experiment as a file that ``train experiment=NAME`` takes: what a command line says, and further settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from brats_lightning.config.values import nested


class _Dumper(yaml.SafeDumper):
    """Lists on one line, nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Of anything."""
        return True


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))


def experiment_text(comment: Sequence[str], settings: Mapping[str, Any], own: Sequence[str]) -> str:
    """The file: the experiment and the overrides of this command's line, then ``settings``.

    Args:
        comment: lines at its top.
        settings: dotted key → value; they win over the command line's.
        own: keys of this command, which the file leaves out.

    Raises:
        ValueError: an override that removes something, which a file cannot.
    """
    hydra = HydraConfig.get()
    groups, values = [], {}
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        key = override.key_or_group
        if key in own or key == "experiment":
            continue
        if override.is_delete():
            raise ValueError(f"~{key} removes something, which an experiment file cannot; set {key}=null instead")
        if key in hydra.runtime.choices:
            groups.append(f"override /{key}: {override.value()}")
        else:
            values[key] = override.value()
    base = hydra.runtime.choices.get("experiment")
    defaults = [f"  - {item}" for item in (*([base] if base else []), *groups, "_self_")]
    body = yaml.dump(nested({**values, **settings}), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return "\n".join(["# @package _global_", *(f"# {line}" for line in comment), "defaults:", *defaults, "", body])
