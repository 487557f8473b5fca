"""What a refused command line may have meant, by the settings that there are."""

import difflib
import inspect
import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from brats_lightning.config.command_line import bare_words, quote, values_of_flag
from brats_lightning.config.resolvers import config_dir, missing
from brats_lightning.config.values import leaves, within

# Settings as other programs call them; a name that ends like one of ours needs no entry.
_ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "initial_lr", "base_lr"), "optimizer.lr"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("steps", "num_steps", "iterations", "max_iterations"), "trainer.max_steps"),
    **dict.fromkeys(("gpus", "num_gpus", "n_gpus"), "trainer.devices"),
    **dict.fromkeys(("patch_size", "roi_size", "crop_size"), "sampling.size"),
    **dict.fromkeys(("num_workers", "n_workers"), "data.workers"),
    **dict.fromkeys(("channels", "sequences"), "data.modalities"),
    **dict.fromkeys(("classes", "num_classes"), "data.labels"),
    **dict.fromkeys(("dataset", "data_dir", "data_root"), "data.root"),
    **dict.fromkeys(("network", "arch", "net"), "model"),
    **dict.fromkeys(("checkpoint", "model_path", "weights_path"), "ckpt"),
    **dict.fromkeys(("output_dir", "out", "save_path"), "output"),
    **dict.fromkeys(("input_dir", "images"), "input"),
}
# Settings of a training that its checkpoint carries; those who predict cannot choose them.
_CARRIED = (
    *("target", "target_extra", "model", "loss", "sampling", "data.labels", "data.modalities", "data.optional"),
    *("data.preprocessing", "data.normalisation", "data.in_channels", "data.out_channels"),
)


def of_words(config_name: str, arguments: Sequence[str]) -> list[str]:
    """For each word without a key: the keys that are still wanted, or the path of which the shell made two words."""
    hints = []
    words = bare_words(arguments)
    cfg = _composed(config_name, arguments) if words else None
    wanted = [key for key in (missing(cfg) if cfg else ()) if key not in _options(arguments)]
    for word in words:
        before = arguments[arguments.index(word) - 1] if arguments.index(word) else ""
        whole = f"{before} {word}"
        if "=" in before and Path(whole.partition("=")[2]).expanduser().exists():
            hints.append(f"the shell split {whole} at its space; quote it: {shlex.quote(whole)}")
        else:
            forms = " or ".join(f"{key}={word}" for key in wanted)
            meant = f"; did you mean {forms}?" if wanted else "; --help lists them"
            hints.append(f"{word}: options are key=value{meant}")
    return hints


def of_options(config_name: str, arguments: Sequence[str]) -> list[str]:
    """For each option whose name is unknown: the one that may be meant."""
    carried = [n for n in _options(arguments) if config_name in ("predict", "tune") and within(n, _CARRIED)]
    if carried:
        return [f"{n} is a setting of the training, which the checkpoint carries; leave it out" for n in carried]
    if (cfg := _composed(config_name, arguments)) is None:  # Hydra's own message explains this
        return []
    known = _keys(cfg)
    unknown = {name: text for name, text in _options(arguments).items() if name not in known}
    return [_of_option(config_name, arguments, name, text, cfg, known) for name, text in unknown.items()]


def _of_option(
    config_name: str, arguments: Sequence[str], name: str, text: str, cfg: DictConfig, known: set[str]
) -> str:
    value = text.partition("=")[2]
    group = name.partition(".")[0]
    choices = [file.stem for file in sorted((config_dir() / group).glob("*.yaml")) if file.stem != "base"]
    others = {choice: _composed(config_name, [*arguments, f"{group}={choice}"]) for choice in choices}
    if having := [choice for choice, other in others.items() if name in _keys(other)]:
        return f"{name}: did you mean it with {group}={' or '.join(having)}?"
    if _is_argument(cfg, name):
        return f"{name} is not listed, but can be added, with a plus: {shlex.quote(f'+{text}')}"
    near = [shlex.quote(f"{key}={value}") for key in _near(name, known)]
    return f"{name}: there is no such setting; " + (
        f"did you mean {' or '.join(near)}?" if near else "--help lists all of them"
    )


def with_known_name(config_name: str, text: str) -> str:
    """An option ``key=value`` with the name that is meant."""
    name, _, value = text.partition("=")
    name = name.replace("-", "_")
    known = _keys(_composed(config_name, ()))
    return next((f"{key}={value}" for key in ([name] if name in known else _near(name, known))), text)


def _near(name: str, known: Iterable[str]) -> list[str]:
    """The names that may be meant: with the same last part, or of the same meaning elsewhere, or spelt alike."""
    *parents, last = name.split(".")
    ends = {key: key.rpartition(".")[2] for key in sorted(known)}
    if not parents and (same := [key for key, end in ends.items() if end == last]):
        return same[:3]
    if _ELSEWHERE.get(last) in ends:
        return [_ELSEWHERE[last]]
    if near := difflib.get_close_matches(name, ends, n=1, cutoff=0.75):
        return near
    inside = {end: key for key, end in ends.items() if key.split(".")[:-1] == parents or not parents}
    near = difflib.get_close_matches(last, inside, n=1) or difflib.get_close_matches(name, ends, n=1)
    return [inside.get(end, end) for end in near]


def _is_argument(cfg: DictConfig, name: str) -> bool:
    """Whether the class or function that a setting belongs to takes it, though its config leaves it out."""
    parent, _, last = name.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return False
    try:
        return last in inspect.signature(get_object(node["_target_"])).parameters
    except Exception:
        return False


def of_several(config_name: str, arguments: Sequence[str], name: str, value: str) -> str:
    """About an option with several values, separated by commas, in a single run."""
    cfg = _composed(config_name, [text for text in arguments if not text.startswith(f"{name}=")])
    each = f"-m makes a run with each of these {'choices' if name in _groups() else 'values'}"
    if cfg is not None and isinstance(OmegaConf.select(cfg, name), ListConfig):
        return f"{name}={value}: a list has brackets: {shlex.quote(f'{name}=[{value}]')}; {each}"
    text = "" if name in _groups() else f"; a text with a comma has quotes: {shlex.quote(f'{name}={quote(value)}')}"
    return f"{name}={value}: {each}{text}"


def of_choice(group: str, choice: str, options: Sequence[str]) -> str:
    """Which choices of a group there are, and which one may be meant."""
    if group == "data" and ("/" in choice or Path(choice).exists()):
        root = shlex.quote(f"data.root={choice}")
        return f"data={choice}: data names the layout and data.root the folder: data=brats_mets {root}"
    near = difflib.get_close_matches(choice.lower(), options, n=1)
    choices = ", ".join(sorted(options))
    return f"{group}={choice}: there is no such choice; " + (
        f"did you mean {group}={near[0]}? ({choices})" if near else f"there are {choices}"
    )


def of_values(config_name: str, arguments: Sequence[str]) -> dict[str, str]:
    """Option → its right form, where a single word stands for what is a list, a mapping or a number by default."""
    if (cfg := _composed(config_name, arguments)) is None:
        return {}
    hints = {}
    for name, text in _options(arguments).items():
        try:
            given = OverridesParser.create().parse_override(text).value()
            default = OmegaConf.select(cfg, name)
        except Exception:  # of a value that refers to one that is missing
            continue
        plain = text.partition("=")[2].strip("'\"")
        if isinstance(default, ListConfig) and isinstance(given, str | int | float):
            same = len(set(default)) == 1 and not isinstance(given, str)
            words = [plain] * len(default) if same else plain.replace(",", " ").split()
            form = shlex.quote(f"{name}=[{','.join(words)}]")
            hints[name] = f"{name}={plain}: a list is expected: {form}"
        elif isinstance(given, str) and isinstance(default, int | float) and not isinstance(default, bool):
            hints[name] = f"{name}={plain}: a number is expected, such as {name}={default}"
        elif re.fullmatch(r"\d+:\d+", plain) and not isinstance(default, str):
            hints[name] = f"{name}={plain}: a mapping is expected: {shlex.quote(f'{name}={{{plain}}}')}"
    return hints


def _keys(cfg: DictConfig | None) -> set[str]:
    """All groups, and all dotted keys of a config."""
    if cfg is None:
        return set()
    paths = (accumulate(key.split("."), "{}.{}".format) for key, _ in leaves(OmegaConf.to_container(cfg)))
    return {*_groups(), *(key for path in paths for key in path)}


def _composed(config_name: str, arguments: Sequence[str]) -> DictConfig | None:
    """The config with the given choices of groups and nothing else; None if Hydra refuses one."""
    chosen = [text for name, text in _options(arguments).items() if name in _groups()]
    folders = values_of_flag(arguments, "--config-dir", "-cd")
    search = ",".join(f'"file://{Path(folder).absolute()}"' for folder in folders if Path(folder).is_dir())
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(config_name, [*chosen, *([f"hydra.searchpath=[{search}]"] if search else [])])
    except Exception:
        return None
    finally:
        GlobalHydra.instance().hydra = running


def _groups() -> set[str]:
    conf = config_dir()
    return {folder.relative_to(conf).as_posix() for folder in conf.rglob("*") if folder.is_dir()}


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """The arguments that set an existing option, by its name."""
    given = (text for text in arguments if "=" in text and not text.startswith(("-", "+", "~", "hydra")))
    return {argument.split("=", 1)[0]: argument for argument in given}
