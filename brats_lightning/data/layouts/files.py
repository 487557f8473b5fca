"""Files of any names: a pattern for each sequence, and one for the mask."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from brats_lightning.core.labels import MODALITIES
from brats_lightning.data.cases import Case, CaseError, Problem, examples, patient_and_timepoint
from brats_lightning.data.folders import Found, is_nifti, likely_files, nifti_files, strays
from brats_lightning.data.layouts.assembly import assembled, no_case, root_folder, tell_once, tell_strays
from brats_lightning.data.layouts.masks import with_masks

_FIELD = re.compile(r"\{([A-Za-z]\w*)\}")
_NAMING = ("case", "patient", "timepoint")


def pattern_cases(
    root: Path | str, files: Mapping[str, str | None], masks: Path | str | Sequence[Path | str] | None = None
) -> list[Case]:
    """The cases whose files match patterns, sorted by id. Symbolic links are followed; no file is opened.

    Files with the same ``{case}``, or without that field the same ``{patient}`` and ``{timepoint}``, are one case.

    Args:
        root: to be searched.
        files: modality, or ``seg`` → `Pattern` of its paths below ``root``, or None.
        masks: one or several folders whose masks replace the others; the last that has a case's mask wins.

    Raises:
        FileNotFoundError: there is no such folder.
        CaseError: faulty patterns.
        ValueError: no file matches.
    """
    patterns = [Pattern(kind, str(text)) for kind, text in files.items() if text is not None]
    _check(patterns)
    layout = "files like " + ", ".join(pattern.text for pattern in patterns)
    root = root_folder(root, layout)
    drafts: dict[str, _Draft] = {}
    unknown = []
    for file in nifti_files(root):
        matches = [(pattern, match) for pattern in patterns if (match := pattern.expression.fullmatch(file.below_root))]
        for pattern, match in matches:
            case = "-".join(match[name] for name in pattern.identity)
            draft = drafts.setdefault(case, _Draft())
            draft.files.setdefault(pattern.kind, []).append(file)
            draft.fields |= {name: text for name, text in match.groupdict().items() if name in _NAMING}
            if len(matches) > 1:
                kinds = " and ".join(f"data.files.{other.kind}" for other, _ in matches)
                fault = f"{file.below_root} matches {kinds}", "one pattern for each file", "make the patterns distinct"
                draft.faults.append(Problem(case, pattern.kind, *fault))
        if not matches:
            unknown.append(file)
    if not drafts:
        raise no_case(root, [file.path for file in unknown], layout)
    likely = likely_files({case: chain(*draft.files.values()) for case, draft in drafts.items()}, unknown)
    if not _tell(root, patterns, drafts.values(), [file.path for file in unknown]):
        tell_strays(root, strays(unknown, likely), layout)
    mask = next((pattern for pattern in patterns if pattern.kind == "seg"), None)
    return with_masks(
        [drafts[case].finished(case, mask, others=tuple(likely.get(case, ()))) for case in sorted(drafts)], masks
    )


class Pattern:
    """Which files are of one kind.

    Each field in braces stands for one or more characters of one folder's or file's name; where it is repeated, for the
    same text again.

    Args:
        kind: a modality, or ``seg``.
        text: a path with fields, such as ``{case}/{case}_T1post.nii.gz``.
    """

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text
        self.fields = _FIELD.findall(text)
        self.identity = [name for name in (_NAMING[:1] if "case" in self.fields else _NAMING) if name in self.fields]
        first, *literals = map(re.escape, _FIELD.split(text)[::2])
        groups = [
            f"(?P={name})" if name in self.fields[:place] else f"(?P<{name}>[^/]+)"
            for place, name in enumerate(self.fields)
        ]
        self.expression = re.compile(first + "".join(map("".join, zip(groups, literals, strict=True))))

    def faults(self) -> Iterator[tuple[str, str]]:
        """What is wrong with it, and what was expected."""
        if self.kind not in (kinds := (*MODALITIES, "seg")):
            yield "a name that is no sequence", ", ".join(kinds)
        if odd := [name for name in self.fields if name not in _NAMING and not name.startswith("any")]:
            yield f"{{{odd[0]}}}", "the fields {case}, {patient}, {timepoint}, and {any}, {any2} … for other text"
        if set("*?{}") & set(_FIELD.sub("", self.text)):
            yield "*, ? or a single brace", "{any} where the text may differ"
        if not {"case", "patient"} & set(self.fields):
            yield "neither {case} nor {patient}", "one of them, by which files are put together"
        if not is_nifti(self.text):
            yield "another ending", ".nii.gz or .nii"

    def filled(self, fields: Mapping[str, str]) -> str | None:
        """The path with these fields; None if one is unknown."""
        known = set(self.fields) <= fields.keys()
        return _FIELD.sub(lambda match: fields[match[1]], self.text) if known else None


@dataclass
class _Draft:
    """A case whose files are being collected."""

    files: dict[str, list[Found]] = field(default_factory=dict)  # by kind
    fields: dict[str, str] = field(default_factory=dict)
    faults: list[Problem] = field(default_factory=list)

    def finished(self, case: str, mask: Pattern | None, others: tuple[Path, ...]) -> Case:
        """The case; ``mask`` is the pattern of masks, by which it gets a name for one if it has none."""
        patient, timepoint = patient_and_timepoint(case)
        own = self.files.get("seg")
        filled = mask and mask.filled(self.fields)
        return assembled(
            case,
            {kind: [file.path for file in found] for kind, found in self.files.items()},
            own[0].below_root if own else filled or case,
            self.faults,
            patient=self.fields.get("patient", patient),
            timepoint=self.fields.get("timepoint", timepoint),
            others=others,
        )


def _check(patterns: Sequence[Pattern]) -> None:
    """Raise a CaseError that names every faulty pattern."""
    problems = [
        Problem("-", f"data.files.{pattern.kind}", f"{pattern.text} has {found}", expected, "correct the pattern")
        for pattern in patterns
        for found, expected in pattern.faults()
    ]
    if not patterns:
        example = "'data.files.t1c=\"{case}/{case}_T1post.nii.gz\"'"
        problems.append(Problem("-", "data.files", "no pattern", "one for each sequence", f"give them: {example}"))
    elif not problems and len({tuple(pattern.identity) for pattern in patterns}) > 1:
        named = "; ".join(f"{pattern.kind} by {' and '.join(pattern.identity)}" for pattern in patterns)
        fault = named, "the same fields, or {case}, in all", "or their files make different cases: correct the patterns"
        problems.append(Problem("-", "data.files", *fault))
    if problems:
        raise CaseError(problems)


def _tell(root: Path, patterns: Sequence[Pattern], drafts: Collection[_Draft], unknown: Sequence[Path]) -> bool:
    """Warn of patterns that no file matches, and where most files match none; whether there was anything to tell."""
    taken = sum(len(files) for draft in drafts for files in draft.files.values())
    idle = [pattern for pattern in patterns if not any(pattern.kind in draft.files for draft in drafts)]
    others = (
        f"{len(unknown)} of {taken + len(unknown)} NIfTI files in {root} match no pattern, e.g. {examples(unknown)}"
    )
    for pattern in idle:
        tell_once(f"no file matches data.files.{pattern.kind}={pattern.text}" + (f"; {others}" if unknown else ""))
    if not idle and len(unknown) > taken:
        tell_once(others)
    return bool(idle) or len(unknown) > taken
