"""The JSON file beside a data set that says which sequence each channel and which class each label is."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brats_lightning.core.labels import MODALITIES, LabelScheme
from brats_lightning.data.cases import CaseError, Problem

# What others call our sequences and classes, in lower case without spaces and punctuation.
_SEQUENCES = {
    "t1n": "t1n t1 t1w t1pre t1wpre t1native t1precontrast t1noncontrast",
    "t1c": "t1c t1ce t1gd t1post t1wc t1wce t1wgd t1wpost t1cw t1contrast t1postcontrast t1wpostcontrast t1enhanced",
    "t2w": "t2w t2",
    "t2f": "t2f flair t2flair t2wflair",
}
_CLASSES = {
    ("netc",): "netc net ncr ncrnet necrosis necrotic necroticcore necrotictumorcore nonenhancing nonenhancingtumor "
    "nonenhancingcore nonenhancingtumorcore necroticandnonenhancingtumor necroticandnonenhancingtumorcore",
    ("snfh",): "snfh ed edema peritumoraledema flairhyperintensity surroundingnonenhancingflairhyperintensity",
    (
        "et",
    ): "et enhancing enhancingtumor enhancinglesion enhancement contrastenhancingtumor gdenhancingtumor activetumor",
    ("rc",): "rc cavity resectioncavity surgicalcavity",
    ("netc", "et"): "tc core tumorcore",
    ("netc", "snfh", "et"): "wt whole wholetumor",
}
_MODALITY_OF = {word: modality for modality, words in _SEQUENCES.items() for word in words.split()}
_CLASSES_OF = {word: classes for classes, words in _CLASSES.items() for word in words.split()}
_OURS = ", ".join(MODALITIES)


def modality_of(word: str) -> str | None:
    """``"T1-Gd"`` → ``"t1c"``; None for a word that names no sequence of ours."""
    return _MODALITY_OF.get(_plain(word))


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The mapping in a JSON file; ``expected`` says what it should be, for messages.

    Raises:
        CaseError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        found = f"{type(content).__name__} at its top level"
    except (OSError, ValueError) as error:
        content, found = None, f"cannot be read as JSON: {error}"
    if not isinstance(content, dict):
        raise CaseError([Problem("-", str(path), found, expected, "correct the file, or choose another data=…")])
    return content


def channel_modalities(
    content: Mapping[str, Any], channels: Mapping[int | str, str | None] | None, path: Path, required: bool = True
) -> dict[int | str, str | None]:
    """Channel number, or name of an image, → modality, or None for one to leave out.

    Args:
        content: of the JSON file, which names its channels under ``channel_names`` or ``modality``.
        channels: `data.channels`, which replaces the file's names.
        path: of the file, for messages.
        required: whether there must be any.

    Raises:
        CaseError: none that is required, one of no known sequence, or two channels of one sequence.
    """
    stated = content.get("channel_names", content.get("modality")) or {}
    if not isinstance(stated, Mapping):
        stated = dict(enumerate(stated if isinstance(stated, list) else [stated]))
    names = {
        int(key) if str(key).isdecimal() else key: name for key, name in (*stated.items(), *(channels or {}).items())
    }
    found = {key: None if name is None else modality_of(str(name)) for key, name in names.items()}
    problems = [
        Problem("-", str(path), f"channel {key} is {name!r}", f"{_OURS}, or another name of these", which_channel(key))
        for key, name in names.items()
        if name is not None and found[key] is None
    ]
    for modality in MODALITIES:
        if len(several := [key for key, name in found.items() if name == modality and isinstance(key, int)]) > 1:
            fault = f"channels {' and '.join(map(str, several))} are both {modality}", "one channel for each sequence"
            problems.append(Problem("-", str(path), *fault, which_channel(several[-1])))
    if required and not names:
        fault = "no channel_names and no modality", "the sequence of each channel"
        problems.append(Problem("-", str(path), *fault, "name them: 'data.channels={0:t1n,1:t1c,2:t2w,3:t2f}'"))
    if problems:
        raise CaseError(problems)
    return found


def which_channel(channel: int | str) -> str:
    """What to do about a channel that is not known."""
    return f"say which it is, 'data.channels={{{channel}:t1c}}', or leave it out, 'data.channels={{{channel}:null}}'"


def label_map(content: Mapping[str, Any], labels: Sequence[str], path: Path) -> dict[int, int] | None:
    """Label in the masks → class index, for the labels that differ from it; None if none does.

    A label is the one class that all regions which hold it have in common, without the parts of it that have labels of
    their own: ``whole tumor [1,2,3], tumor core [2,3], enhancing tumor [3]`` is read like ``oedema 1, necrosis 2,
    enhancing tumour 3``. nnU-Net's label ``ignore`` keeps its number.

    Args:
        content: of the JSON file; its ``labels`` map names to numbers or to lists of them, or numbers to names.
        labels: foreground classes, as `data.labels`.
        path: of the file, for messages.

    Raises:
        CaseError: labels that are not certainly one of the classes.
    """
    scheme = LabelScheme(tuple(labels))
    stated = _numbers_of(content.get("labels") or {}, path)
    ignored = set().union(*(numbers for name, numbers in stated.items() if _plain(name) == "ignore"))
    regions = [(_classes_of(name, scheme), numbers) for name, numbers in stated.items()]
    found: dict[int, int] = {}
    faults = [(number, "ignore", "") for number in sorted(ignored) if number < scheme.num_classes]
    for number in sorted(set().union(*stated.values()) - {0} - ignored):
        inside = [classes for classes, numbers in regions if number in numbers and classes]
        shared = set.intersection(*inside) if inside else set()
        parts = (classes for classes, numbers in regions if number not in numbers and classes < shared)
        meant = sorted(shared.difference(*parts))
        if len(meant) == 1 and meant[0] in scheme.names:
            found[number] = scheme.index(meant[0])
        else:
            names = " and ".join(repr(name) for name, numbers in stated.items() if number in numbers)
            absent = f"add {meant[0]} to data.labels, or " if len(meant) == 1 else ""
            faults.append((number, f"{names}, which may be {' or '.join(meant)}" if len(meant) > 1 else names, absent))
    if faults:
        numbers = sorted({*found, *(number for number, _, _ in faults)})
        example = ",".join(f"{number}:{found.get(number, '…')}" for number in numbers)
        remedy = f"say which class each label is, 'data.label_map={{{example}}}', 0 for the background"
        classes = ", ".join(f"{index} {name}" for index, name in enumerate(scheme.class_names))
        raise CaseError(
            [Problem("-", str(path), f"label {n} is {name}", classes, more + remedy) for n, name, more in faults]
        )
    return {number: index for number, index in found.items() if number != index} or None


def _numbers_of(labels: Any, path: Path) -> dict[str, set[int]]:
    """Name → the labels that it covers."""
    numbers: dict[str, set[int]] = {}
    try:
        for key, value in labels.items():
            if str(key).isdecimal():
                numbers.setdefault(str(value), set()).add(int(key))
            else:
                numbers[key] = {int(number) for number in (value if isinstance(value, list) else [value])}
    except (AttributeError, TypeError, ValueError):
        fault = f"the labels {labels!r}", 'names and numbers, such as {"background": 0, "edema": 1}'
        raise CaseError([Problem("-", str(path), *fault, "correct the file, or set data.label_map")]) from None
    return numbers


def _classes_of(name: str, scheme: LabelScheme) -> set[str]:
    """The classes that a name means; none if it is unknown."""
    own = {known for known in scheme.names if _plain(known) == _plain(name)}
    return own or set(_CLASSES_OF.get(_plain(name), ()))


def _plain(word: str) -> str:
    """Lower case, without spaces and punctuation, in American spelling."""
    return re.sub(r"[^a-z0-9]", "", word.lower()).replace("tumour", "tumor").replace("oedema", "edema")
