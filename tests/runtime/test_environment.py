"""The state of a checkout, packages and machine, as a run records them."""

import subprocess

import pytest

from brats_lightning.runtime.environment import hardware, packages, repository


def git(folder, *arguments):
    settings = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *settings, *arguments], capture_output=True, check=True)
    return done.stdout.decode()


@pytest.fixture
def checkout(tmp_path):
    """Of two files and one commit."""
    folder = tmp_path / "checkout"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.py").write_text("depth = 3\n")
    (folder / "deep/notes.txt").write_text("a\nb\n")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_a_clean_checkout_is_its_commit(checkout):
    found = repository(checkout / "deep")
    assert found.folder.samefile(checkout)
    assert found.commit == git(checkout, "rev-parse", "HEAD").strip()
    assert (found.changed, found.diff) == ((), "")


def test_the_commit_and_the_changes_give_the_files_back(checkout, tmp_path):
    (checkout / "model.py").write_text("depth = 4\n")
    (checkout / "deep/notes.txt").unlink()
    (checkout / "deep/my loss.py").write_text("def loss(): ...\n")
    (checkout / "scan.nii").write_bytes(b"not code")
    git(checkout, "add", "model.py")  # whether or not it is staged
    index = (checkout / ".git/index").read_bytes()
    found = repository(checkout)
    assert found.changed == ("deep/my loss.py", "deep/notes.txt", "model.py")
    assert (checkout / ".git/index").read_bytes() == index

    git(tmp_path, "clone", str(checkout), "again")
    (tmp_path / "code.diff").write_text(found.diff)
    git(tmp_path / "again", "apply", str(tmp_path / "code.diff"))
    again = {path.name: path.read_text() for path in (tmp_path / "again").rglob("*.*") if ".git" not in path.parts}
    assert again == {"model.py": "depth = 4\n", "my loss.py": "def loss(): ...\n"}


def test_no_checkout_no_commit_and_no_git(tmp_path, checkout, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    assert repository(tmp_path / "plain") is None
    git(tmp_path / "plain", "init")
    assert repository(tmp_path / "plain") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert repository(checkout) is None


def test_packages_and_machine():
    import torch

    found = packages()
    assert found["torch"] == torch.__version__
    assert next(iter(found)) == "python"
    assert {"hydra-core", "pytorch-lightning", "pyyaml"} < set(found)
    machine = hardware()
    assert machine["cores"] >= 1
    assert machine["memory_gib"] >= 1
    assert len(machine["gpus"]) == torch.cuda.device_count()
