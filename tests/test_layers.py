"""Imports point one way: a room knows those below it only."""

import ast
from pathlib import Path

import brats_lightning

PACKAGE = Path(brats_lightning.__file__).parent
LAYERS = [  # from the ground up; rooms of one layer don't know each other
    {"runtime"},
    {"core"},
    {"data", "models", "losses", "metrics"},
    {"inference", "evaluation", "synthetic"},
    {"training"},
    {"config"},
]
HEIGHT = {room: height for height, layer in enumerate(LAYERS) for room in layer}
HYDRA = {"config"}  # and the commands


def imports(path):
    """The modules a file imports, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                part = f"{node.module}.{alias.name}"
                yield part if (PACKAGE.parent / f"{part.replace('.', '/')}.py").is_file() else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_folder_is_a_room():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(HEIGHT)


def test_rooms_know_those_below_only():
    wrong = []
    for room, height in HEIGHT.items():
        for path in sorted((PACKAGE / room).rglob("*.py")):
            for name in imports(path):
                top, _, rest = name.partition(".")
                other = rest.partition(".")[0]
                if top == "brats_lightning" and other != room and HEIGHT.get(other, len(LAYERS)) >= height:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
                if top in ("hydra", "omegaconf") and room not in HYDRA:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {top}")
    assert not wrong, "\n".join(wrong)


def test_losses_and_metrics_know_no_lightning():
    for room in ("models", "losses", "metrics"):
        for path in (PACKAGE / room).rglob("*.py"):
            assert not any("lightning" in name.replace("brats_lightning", "") for name in imports(path)), path


def test_no_command_knows_another():
    commands = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    for command in commands:
        known = {name.removeprefix("brats_lightning.") for name in imports(PACKAGE / f"{command}.py")}
        assert not known & (commands - {command}), command


def test_no_modules_in_a_circle():
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        graph[module] = set(imports(path))
    done, way = set(), []

    def visit(module):
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module in done or module not in graph:
            return
        way.append(module)
        for name in graph[module] - {module}:
            visit(name)
        way.pop()
        done.add(module)

    for module in graph:
        visit(module)
