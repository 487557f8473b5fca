"""What an error means for the user: one block that names the fix, in place of a traceback or of Hydra's words."""

import errno
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, OmegaConfBaseException

from brats_lightning.config import hints
from brats_lightning.config.command_line import needs_quotes, quote

# Errors of other packages that settings or the machine cause: a pattern of type and message → what to do.
_FOREIGN = {
    r'Could not detect "srun"': "launcher=slurm: this machine has no SLURM (no srun); start the sweep on a login node "
    "of the cluster, or use launcher=joblib, or none",
    r"ValueError raised while resolving interpolation: (.*)": "{0}",
    r"Job not requeued because: timed-out too many times": "the job reached its limit, hydra.launcher.timeout_min, "
    "more often than hydra.launcher.max_num_timeout allows; it is saved, and resume=RUN continues it",
    r"^RuntimeError: .*gloo|^DistBackendError": "the connection to another process of the run failed: it ended, or its "
    "machine is gone; its own output says why. The run is saved up to its last checkpoint: resume=RUN continues it",
    r"^OutOfMemoryError|CUDA out of memory": "the GPU's memory is too small for this: lower data.batch_size or "
    "sampling.size, or for prediction inference.window; brats-plan proposes what fits",
    r"^MemoryError|DefaultCPUAllocator: can't allocate": "the machine's memory is too small for this: lower "
    "data.batch_size, sampling.size or inference.window; brats-plan proposes what fits",
    r"'(int|float)' object has no attribute 'total_seconds'|not a valid duration": "trainer.max_time is "
    "DD:HH:MM:SS, such as trainer.max_time=00:00:02:00 for two minutes",
    r"No supported gpu backend|torch_xla": "trainer: PyTorch finds no such device on this machine (for a GPU it needs "
    "a driver, and a build of PyTorch for CUDA); trainer=auto takes a GPU where there is one, trainer=cpu none",
    r"You requested gpu: \[": "there are fewer GPUs than trainer.devices asks for; trainer=ddp takes all there are",
    r"Requirement '(wandb|mlflow)\W.* not met": "logger={0} needs the extra {0}: pip install 'brats-lightning[{0}]'",
    r"Could not find 'hydra/launcher/(joblib|submitit\w*)'|No module named '(optuna)'": "{0} needs the extra sweep: "
    "pip install 'brats-lightning[sweep]'",
}


def explanation(error: BaseException, config_name: str, arguments: Sequence[str]) -> str | None:
    """What to tell the user about an error of settings, data or machine; None for what may be a bug.

    Errors of this package and those about files say it themselves; so does Hydra where nothing better is known.
    """
    text = f"{type(error).__name__}: {error}"
    for pattern, advice in _FOREIGN.items():
        if match := re.search(pattern, text):
            return advice.format(*filter(None, match.groups()))
    if isinstance(error, HydraException):
        return _of_hydra(error, config_name, arguments)
    foreign = HydraConfig.initialized() and HydraConfig.get().job.config_name != config_name
    if isinstance(error, ConfigAttributeError) and foreign:
        key = error.full_key
        return (
            f"the config that --config-name names has no {key}, which this version of the program needs: take the "
            f"version that wrote it (in a run folder, provenance.yaml has the commit), or set it: +{key}=…"
        )
    message = _own(error)
    if message is None or not isinstance(error, OSError):
        for key, hint in hints.of_values(config_name, arguments).items():
            # Of the errors of this package, only those about the key's part of the config.
            if message is None or isinstance(error, OmegaConfBaseException) or message.startswith(key.split(".")[0]):
                return f"{hint} ({(message or text).splitlines()[0]})"
    return message


def _of_hydra(error: HydraException, config_name: str, arguments: Sequence[str]) -> str:
    """About a config that Hydra cannot compose."""
    if isinstance(error, OverrideParseException):
        if (quoted := needs_quotes(error.override)) is not None:
            return f"{error.override}: quote the value, inside the shell's quotes: {quoted}"
        key, _, value = error.override.partition("=")
        if "Unknown function" in str(error):
            quoted = shlex.quote(f"{key}={quote(value)}")
            return f"{error.override}: quote the value, inside the shell's quotes: {quoted}"
        if re.fullmatch(r"\(.*\)", value):
            return f"{error.override}: a list has square brackets: '{key}=[{value[1:-1]}]'"
    elif isinstance(error, MissingConfigException) and error.options:
        wanted = str(error.missing_cfg_file)
        given = (text.lstrip("+") for text in arguments if "=" in text)
        asked = next((text for text in given if text.replace("=", "/", 1) == wanted), "=".join(wanted.rsplit("/", 1)))
        group, _, choice = asked.partition("=")
        return hints.of_choice(group, choice, error.options)
    elif several := re.search(r"Ambiguous value for argument '([^=]*)=(.*)'", str(error)):
        return hints.of_several(config_name, arguments, *several.groups())
    elif found := hints.of_options(config_name, arguments):
        return "\n".join(found)
    elif unused := re.search(r"Could not override '(.*)'. No match in the defaults list", str(error)):
        return f"{unused[1]}: this command has no such group; --help lists those that it has"
    cause = error.__cause__
    details = f"\n{cause}" if isinstance(cause, OmegaConfBaseException) else ""
    return re.split(r"\s*See https|\s*Config search path", f"{error}{details}")[0].strip()


def _own(error: BaseException) -> str | None:
    """The message of an error that this package raised, or that is about a file, else None."""
    if isinstance(error, OSError) and error.filename is not None:
        full = "; free some space, or choose another folder" if error.errno == errno.ENOSPC else ""
        return f"{error.filename}: {error.strerror}{full}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not raised_here(error):
        return "the disk is full; free some space, or choose another folder, such as paths.outputs=DIR"
    return str(error) if isinstance(error, ValueError | RuntimeError | OSError) and raised_here(error) else None


def raised_here(error: BaseException) -> bool:
    """Whether this package's own code raised the error."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return bool(trace and Path(trace.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1]))
