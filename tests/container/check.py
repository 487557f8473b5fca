"""The image of a package, built and run under the challenge's limits: ``make container-check``, or

    python -m tests.container.check --folder DIR --cases DIR torch=cpu

Two tiny networks are trained and packed as an ensemble. The image is built without a network, on a Debian that
debootstrap makes, and run without a network, on read-only files and input, with 12 GB of memory. Its masks must be
those of ``predict``; a faulty case must not stop the others. It needs root, Debian's packages podman, runc and
debootstrap, and, for the wheels and Debian's packages, a network. Overrides of ``package`` can be added. Exits with 1
if something is not as it should.
"""

import argparse
import gzip
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("podman", "runc", "debootstrap", "unshare")
RELEASE, PYTHON = "bookworm", (3, 11)
MEMORY = "12g"
NETWORK = [
    *("experiment=quick", "data=phantom_tiny", "trainer=cpu", "seed=0", "model.widths=[8,16,32]", "protocols=[]"),
    *("sampling.size=[24,24,24]", "inference.window=[32,32,32]", "trainer.max_steps=120", "logger=none"),
]
GREEDY = "memory = bytearray(2**30)\nfor page in range(0, 2**30, 4096):\n    memory[page] = 1"


def lacking(base: str | None) -> str | None:
    """Why no image can be built here, or None."""
    if absent := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"no {', '.join(absent)}; on Debian: apt-get install podman runc debootstrap"
    if os.geteuid() != 0:
        return "it needs root"
    if base is None and sys.version_info[:2] != PYTHON:
        return f"{RELEASE} has Python 3.11, for which this Python cannot collect wheels; give --base IMAGE"
    return None


class Podman:
    """Images and containers in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # podman's monitor leaves a file where it is started
        self.options = ["--root", str(folder / "images"), "--runroot", str(folder / "state"), "--runtime", "runc"]
        limits = {
            name: resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1] for name in ("nofile", "nproc")
        }
        # By default podman asks for more than a container around it may grant.
        least = {name: 4096 if limit == resource.RLIM_INFINITY else min(4096, limit) for name, limit in limits.items()}
        self.limits = [word for name, limit in least.items() for word in ("--ulimit", f"{name}={limit}:{limit}")]

    def __call__(self, *arguments: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, "podman", *self.options, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )

    def build(self, folder: Path, base: str, tag: str) -> None:
        """Build a folder without a network."""
        told = ["build", "--isolation=chroot", *self.limits, "--build-arg", f"BASE={base}", "-t", tag, str(folder)]
        done = self(*told, before=["unshare", "--net"])
        assert done.returncode == 0, done.stderr[-3000:]

    def run(self, image: str, *arguments: str, options: Sequence[str] = (), memory: str = MEMORY) -> tuple[int, str]:
        """Run an image without a network, on read-only files; its exit code and what it said."""
        limits = ["--rm", "--network=none", "--read-only", "--tmpfs=/tmp", f"--memory={memory}", *self.limits]
        done = self("run", *limits, *options, image, *arguments)
        return done.returncode, done.stdout + done.stderr

    def predict(self, image: str, inputs: Path, output: Path) -> tuple[int, str]:
        """Run the entry point on a folder, which is mounted read-only."""
        output.mkdir()
        return self.run(image, options=["-v", f"{inputs}:/input:ro", "-v", f"{output}:/output"])


def make_base(podman: Podman, folder: Path) -> str:
    """An image of Debian with Python, by debootstrap."""
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", packages, RELEASE, folder], check=True, capture_output=True)
    archive = folder.with_suffix(".tar")
    subprocess.run(["tar", "-C", folder, "-cf", archive, "."], check=True)
    done = podman("import", str(archive), "base:debian")
    assert done.returncode == 0, done.stderr
    archive.unlink()
    return "localhost/base:debian"


def command(name: str, *overrides: str) -> None:
    """Run a command of the program."""
    done = subprocess.run([sys.executable, "-m", f"brats_lightning.{name}", *overrides], capture_output=True, text=True)
    assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"


def make_inputs(folder: Path, cases: Path | None) -> Path:
    """A folder for each of three cases, or of those given; one of them has an unusual name."""
    from brats_lightning.data.layouts.brats import find_cases
    from brats_lightning.synthetic.phantom import make_phantoms

    source = cases or make_phantoms(folder / "cases", cases=3, shape=(64, 80, 48), seed=5)
    for number, case in enumerate(find_cases(source)):
        name = "a patient of no number" if number == 1 else case.id
        (folder / "in" / name).mkdir(parents=True)
        for modality, file in case.images.items():
            shutil.copyfile(file, folder / "in" / name / f"{name}-{modality}.nii.gz")
    return folder / "in"


def masks(folder: Path) -> dict[str, bytes]:
    """Name → the file's content, headers included."""
    return {file.name: gzip.decompress(file.read_bytes()) for file in folder.iterdir()}


def check(folder: Path, base: str | None, cases: Path | None, overrides: Sequence[str]) -> None:
    """All checks, one line for each."""
    podman = Podman(folder)
    networks = [folder / f"run{seed}" for seed in (0, 1)]
    for seed, run in enumerate(networks):
        command("train", *NETWORK, f"seed={seed}", f"hydra.run.dir={run}", f"paths.outputs={folder}")
    ckpt = f"ckpt=[{','.join(str(run / 'checkpoints/best.ckpt') for run in networks)}]"
    inputs, package = make_inputs(folder, cases), folder / "package"
    settings = [ckpt, "postprocessing=hysteresis", "precision=32", "device=cpu"]
    command("package", *settings, f"output={package}", f"dry_run={inputs}", f"masks={folder / 'dry'}", *overrides)
    command("predict", *settings, f"input={inputs}", f"output={folder / 'wanted'}", f"hydra.run.dir={folder / 'log'}")
    wanted = masks(folder / "wanted")
    assert masks(folder / "dry") == wanted, "the dry run's masks differ"
    size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
    print(f"passed: a package of {size / 1e6:.0f} MB, whose dry run has the masks of predict", flush=True)

    base = base or make_base(podman, folder / "debian")
    began = time.monotonic()
    podman.build(package, base, "brats")
    sizes = [int(podman("image", "inspect", "--format", "{{.Size}}", image).stdout) for image in ("brats", base)]
    text = f"an image of {sizes[0] / 1e6:.0f} MB, {sizes[1] / 1e6:.0f} MB of it the base"
    print(f"passed: {text}, built without a network in {time.monotonic() - began:.0f} s", flush=True)

    code, said = podman.run("brats", "-c", GREEDY, options=["--entrypoint=/opt/brats/env/bin/python"], memory="512m")
    assert code == 137, f"a program of 1 GiB in 512 MB of memory ended with {code}: {said[-1000:]}"
    print("passed: the limit of memory holds: a program of 1 GiB was killed at 512 MB", flush=True)

    began = time.monotonic()
    code, said = podman.predict("brats", inputs, folder / "out")
    assert code == 0, said[-3000:]
    assert masks(folder / "out") == wanted, "the image's masks differ from those of predict"
    voxels = sum(any(content[352:]) for content in wanted.values())
    text = f"{len(wanted)} masks, {voxels} of them not empty, as those of predict, in {time.monotonic() - began:.0f} s"
    print(f"passed: {text}, with --memory {MEMORY}, no network, read-only files and input", flush=True)

    first = sorted(inputs.iterdir())[0]
    broken = next(first.glob("*-t1c.nii.gz"))
    broken.write_bytes(broken.read_bytes()[:-1000])
    (inputs / "nothing").mkdir()
    code, said = podman.predict("brats", inputs, folder / "some")
    assert (code, masks(folder / "some")) == (
        1,
        {name: wanted[name] for name in wanted if name != f"{first.name}.nii.gz"},
    )
    assert f"no mask of {first.name}, no case in nothing" in said, said[-3000:]
    print("passed: a case that fails, and a folder without one, do not stop the others; the exit code is 1", flush=True)
    shutil.rmtree(inputs / "nothing")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="empty folder for everything; default: a temporary one")
    parser.add_argument("--base", help="image to build on; default: one that debootstrap makes")
    parser.add_argument("--cases", type=Path, help="folder with cases to predict; default: phantoms")
    parser.add_argument("overrides", nargs="*", help="of the command package; default: torch as it is installed here")
    chosen = parser.parse_args()
    if why := lacking(chosen.base):
        raise SystemExit(f"container-check cannot run here: {why}")
    import torch

    overrides = chosen.overrides or ["torch=" + ("cuda" if torch.version.cuda else "cpu")]
    os.environ |= {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            check(folder, chosen.base, chosen.cases, overrides)
        except AssertionError as error:
            raise SystemExit(f"FAILED: {error}") from None
        finally:
            Podman(folder)("rmi", "--all", "--force")  # its files belong to mounts that a plain removal would meet


if __name__ == "__main__":
    main()
