"""The documentation: commands of the pages for newcomers run, all others compose; links lead somewhere; keys exist."""

import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from brats_lightning.config.command_line import with_quoted_paths
from brats_lightning.config.resolvers import config_dir, register_resolvers
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.synthetic.phantom import PhantomSettings, make_phantoms, phantom_folder

ROOT = Path(__file__).parents[1]
DOCS, CONF, ARENA = ROOT / "docs", config_dir(), ROOT / "tests/benchmarks/arena/conf"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = DOCS / "reference/config.md"
RUN_WHOLLY = [ROOT / "README.md", DOCS / "tutorial/own-data.md"]
RUN_OWN_CODE = sorted(DOCS.glob("how-to/add-a*.md"))  # commands that use the files of their page

# What makes a command one of seconds; brats2026 is the fastest with the many specks of an untrained network.
# A user's own network has no widths, and cases in a folder have their size.
SMALL = {
    "train": [
        "trainer.accelerator=cpu",
        "trainer.max_steps=2",
        "trainer.max_time=null",
        "trainer.val_check_interval=2",
        "sampling.size=[16,16,16]",
        "inference.window=[32,32,32]",
        "data.workers=0",
        "data.cache_workers=1",
        "data.patches_per_case=1",
        "data.batch_size=1",
        "logger=none",
        "protocols=[brats2026]",
        "seed=0",
    ],
    "preprocess": ["data.cache_workers=1"],
    "evaluate": ["protocol=brats2026", "processes=1", "resamples=50", "pictures=2"],
}
SMALL_NETWORK, SMALL_PHANTOMS = "model.widths=[4,8,16,32]", ["++data.source.cases=10", "++data.source.shape=[40,48,32]"]

# Runs the commands of the pages, each in its own folder, in one process: torch is imported once. RUN is the newest run.
RUNNER = """
import json, os, runpy, sys, traceback
from pathlib import Path
failed = {}
for page, folder, commands in json.load(open("pages.json")):
    os.chdir(folder)
    sys.path.insert(0, folder)
    for module, *arguments in commands:
        runs = sorted(Path("outputs").glob("**/checkpoints"), key=lambda path: path.stat().st_mtime)
        newest = runs[-1].parent if runs else "RUN"
        sys.argv = [module, *(argument.replace("RUN/", f"{newest}/") for argument in arguments)]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except BaseException as error:
            if isinstance(error, SystemExit) and not error.code:
                continue
            traceback.print_exc()
            failed[page] = sys.argv
            break
    sys.path.remove(folder)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(folder):
            del sys.modules[name]
Path(os.environ["FAILED"]).write_text(json.dumps(failed))
"""


class Command(NamedTuple):
    """A command of the program: its module (``train`` or ``duel``), its overrides, and its words with dashes."""

    module: str
    overrides: list[str]
    flags: list[str]

    @property
    def name(self):
        return self.module.rpartition(".")[2]


def identifier(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, language):
    fenced = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", page.read_text(), re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in fenced]


def shell_lines(page):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line.replace(",…", "").replace("…", "X").replace("$RUN", "RUN"), comments=True):
                yield words


def as_command(words):
    """A shell line as a command of the program; None of another one."""
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    for place, word in enumerate(words):
        if word.startswith(("brats_lightning.", "tests.benchmarks.")) and words[place - 1] == "-m":
            module, arguments = word, words[place + 1 :]
            break
    else:
        return None
    flags = [word for word in arguments if word.startswith("-")]
    for flag in {"--config-dir", "--config-name", "--cfg"} & set(flags):
        flags.insert(flags.index(flag) + 1, arguments[arguments.index(flag) + 1])
    return Command(module, [word for word in arguments if word not in flags], flags)


def commands(page):
    return [command for command in map(as_command, shell_lines(page)) if command]


def write_files(page, folder):
    """The files that a page shows, each with its path in a comment on the first line."""
    for text in blocks(page, "python") + blocks(page, "yaml"):
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(text)


@cache
def composed(name, overrides, search=()):
    """The config of a command; overrides and further folders of configs are tuples."""
    register_resolvers()
    primary, search = (ARENA, (CONF, *search)) if (ARENA / f"{name}.yaml").exists() else (CONF, search)
    if search:
        overrides = [*overrides, f"hydra.searchpath=[{','.join(f'file://{path}' for path in search)}]"]
    with initialize_config_dir(str(primary), version_base="1.3"):
        return compose(name, list(overrides), return_hydra_config=True)


def each_choice(overrides):
    """The overrides of a sweep's jobs, as few as hold every value."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = [
        [f"{override.key_or_group}={value}" for value in (override.value().start, override.value().end)]
        if override.is_interval_sweep()
        else [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.input_line]
        for override in parsed
    ]
    for job in itertools.islice(itertools.zip_longest(*swept), max(map(len, swept), default=1)):
        yield [value or values[0] for value, values in zip(job, swept, strict=True)]


@pytest.mark.parametrize("page", PAGES, ids=identifier)
def test_overrides_compose(page, tmp_path):
    write_files(page, tmp_path)
    own = (tmp_path / "MY_CONF",) if (tmp_path / "MY_CONF").exists() else ()
    for command in commands(page):
        if not (CONF / f"{command.name}.yaml").exists() and not (ARENA / f"{command.name}.yaml").exists():
            assert importlib.util.find_spec(command.module), command
            continue
        for overrides in each_choice(with_quoted_paths(command.overrides)) if command.overrides else [[]]:
            cfg = composed(command.name, tuple(overrides), own)
            for contestant in cfg.get("contestants") or ():
                experiment, *its = shlex.split(contestant)
                composed("train", (f"experiment={experiment}", *its), (ARENA,))


@pytest.mark.parametrize("page", PAGES, ids=identifier)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {words[1] for words in shell_lines(page) if words[0] == "make"}
    named |= set(re.findall(r"`make ([a-z-]+)", page.read_text()))
    assert named <= targets


@cache
def config_page():
    spec = importlib.util.spec_from_file_location("config_page", DOCS / "config_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def known_keys():
    pages = config_page().page(CONF) + config_page().page(ARENA)
    return set(re.findall(r"^\| `([^`]+)` \|", pages, re.M))


def overrides_in_text():
    """Overrides in inline code → the pages that name them."""
    found = {}
    for page in PAGES:
        text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
        for code in re.findall(r"`([^`\n]+)`", "" if page == GENERATED else text):
            words = shlex.split(code.replace('"', "")) if code.count("'") % 2 == 0 else []
            for word in words if all(re.match(r"[\w./]+=\S", word) for word in words) else []:
                found.setdefault(word, set()).add(identifier(page))
    examples = {"key=value", "group=choice", "OMP_NUM_THREADS=1", "DEVICE=cpu", "BRATS_DEVICE=cpu"}
    return {word: pages for word, pages in found.items() if word not in examples}


def test_overrides_in_text_exist():
    unknown = {}
    for word, pages in overrides_in_text().items():
        name, _, value = word.partition("=")
        if name not in known_keys() and not (CONF / name).is_dir() and not name.startswith("hydra."):
            unknown[word] = pages
        elif (CONF / name).is_dir() and re.fullmatch(r"[a-z_,]+", value) and value != "null":
            missing = [choice for choice in value.split(",") if not (CONF / name / f"{choice}.yaml").exists()]
            unknown |= {word: pages} if missing else {}
    assert not unknown


def in_order(page, wholly, folder):
    """Commands of a page as the runner takes them, small, with placeholders replaced."""
    for command in commands(page):
        own = "--config-dir" in command.flags or any(word.startswith("trust=") for word in command.overrides)
        if not (wholly or own):
            continue
        small = list(SMALL.get(command.name, ()))
        groups = {word.partition("=")[0]: word.partition("=")[2] for word in command.overrides}
        if command.name == "train" and groups.get("model", "unet") != "one_layer":
            small.append(SMALL_NETWORK)
        if command.name in ("train", "preprocess"):
            small.append(f"paths.cache_dir={folder}/cache")
            small += [] if "data" in groups else [*SMALL_PHANTOMS, f"paths.phantom_dir={folder}/phantoms"]
        small = [] if "resume" in groups else [word for word in small if word.partition("=")[0] not in groups]
        cases = folder / ("hospital" if groups.get("data") == "hospital" else "cases")
        overrides = [re.sub(r"\bDIR\b", str(cases), word) for word in command.overrides]
        yield [command.module, *command.flags, *overrides, *small]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """A folder with ``cases`` as BraTS has them, and ``hospital``, the same as the page on data sets names them."""
    folder = tmp_path_factory.mktemp("docs")
    settings = PhantomSettings(cases=10, shape=(40, 48, 32))
    (folder / "cases").symlink_to(make_phantoms(phantom_folder(folder / "phantoms", settings), settings, workers=1))
    names = {"t1n": "t1", "t1c": "t1_gd", "t2w": "t2", "t2f": "flair", "seg": "lesions"}
    for case in find_cases(folder / "cases"):
        (folder / "hospital" / case.id).mkdir(parents=True)
        for modality, file in case.files.items():
            (folder / "hospital" / case.id / f"{names[modality]}.nii.gz").symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def pages_run(cases):
    """Folders in which the pages' commands have run, what failed, and the output."""
    folders = {page: cases / identifier(page).replace("/", "_") for page in (*RUN_WHOLLY, *RUN_OWN_CODE)}
    todo = []
    for page, folder in folders.items():
        folder.mkdir()
        write_files(page, folder)
        todo.append([identifier(page), str(folder), list(in_order(page, page in RUN_WHOLLY, cases))])
    (cases / "pages.json").write_text(json.dumps(todo))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FAILED": str(cases / "failed.json")}
    command = [sys.executable, "-W", "ignore", "-c", RUNNER]
    done = subprocess.run(command, cwd=cases, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folders, json.loads((cases / "failed.json").read_text()), done.stderr[-5000:]


@pytest.mark.parametrize("page", [*RUN_WHOLLY, *RUN_OWN_CODE], ids=identifier)
def test_commands_run(page, pages_run):
    folders, failed, output = pages_run
    assert identifier(page) not in failed, f"{failed[identifier(page)]}\n{output}"
    assert list(folders[page].glob("outputs/**/metrics.json"))
    assert len(list(folders[page].glob("outputs/**/report.html"))) == (page in RUN_WHOLLY)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


def slug(heading):
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=identifier)
def test_links_lead_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert page.name in ("README.md", "CONTRIBUTING.md") or file.resolve().is_relative_to(DOCS), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if anchor else []
        assert not anchor or anchor in map(slug, headings), target


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / ".mkdocs.yml").read_text()
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} == set(
        re.findall(r": ([\w/-]+\.md)$", navigation, re.M)
    )


def test_config_page_is_up_to_date():
    assert GENERATED.read_text() == config_page().page(), "run: python docs/config_page.py"


def test_the_notebook_runs_from_training_to_a_picture(tmp_path, monkeypatch):
    """Its code, cell by cell, in a fresh process; what a cell shows is the value of its last line."""
    cells = json.loads((DOCS / "tutorial/python.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    shown = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    script = f"""
import ast
namespace = {{}}
for text in {code!r}:
    *body, last = ast.parse(text).body
    exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
        print(getattr(value, "size", value))
    else:
        exec(compile(ast.Module([last], []), "cell", "exec"), namespace)
"""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    found = done.stdout.splitlines()
    assert found[0] == "(('t1n', 't1c', 't2w', 't2f'), {0: 'background', 1: 'netc', 2: 'snfh', 3: 'et'})"
    assert len(found) == sum(bool(outputs) for outputs in shown)
    width, height = map(int, found[3].strip("()").split(","))
    assert (width > height) is True
    assert 0 < float(found[4].strip("()").split(",")[0]) <= 1
    assert (tmp_path / "mask.nii.gz").is_file()
