import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from brats_lightning.config.allow_list import build_saved
from brats_lightning.config.postprocessing import as_config, tuned, tuned_file
from brats_lightning.data.cases import CaseError
from brats_lightning.decode import decode
from brats_lightning.inference import tuning
from brats_lightning.inference.ensemble import Ensemble
from brats_lightning.inference.postprocessing import Hysteresis, MinVolume, Postprocessing
from brats_lightning.predict import predict
from brats_lightning.runtime.files import UnwritableFile
from brats_lightning.tune import tune
from tests.data.tiny_cases import LPS, SHAPE, save, write_case
from tests.tiny_models import voxelwise

NAMES = [f"BraTS-MET-0000{n}-000" for n in range(1, 7)]

pytestmark = pytest.mark.usefixtures("one_thread")


def scan():
    """T1c whose value is, by `network`, the probability of ET: a lesion of 27 voxels with a peak, a look-alike of 8
    without, and a speck of one voxel with a peak; and the mask of the lesion."""
    image = np.full(SHAPE, 10, np.int16)
    image[0, 0, 0] = 0
    image[2:5, 2:5, 2:5] = 400  # the lesion, mostly under 0.5
    image[3, 3, 3] = 950
    image[8:10, 8:10, 6:8] = 600  # the look-alike
    image[8, 3, 7] = 1000  # the speck
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 2:5, 2:5] = 3
    return image, mask


@pytest.fixture
def runs(tmp_path):
    """Cases, and two run folders whose checkpoints make of the values probabilities of about 0.4, 0.6 and 1."""
    image, mask = scan()
    for name in NAMES:
        write_case(tmp_path / "in", name, affine=LPS, t1c=image, seg=mask)
    source = {"_target_": "brats_lightning.data.layouts.brats.find_cases", "root": str(tmp_path / "in")}
    paths = []
    for run, val, test in (("a", NAMES[1:3], NAMES[4:5]), ("b", NAMES[2:4], NAMES[4:5])):
        # sigmoid(8 (v - 0.45)): 0.40 at 0.4, 0.77 at 0.6, 0.98 at 0.95
        path = voxelwise(
            tmp_path / run / "checkpoints/best.ckpt",
            [[0.0], [0.0], [0.0], [8.0]], [0.0, -99.0, -99.0, -8 * 0.45], source=source, window=[16, 16, 16],
        )  # fmt: skip
        split = {"train": NAMES[:1], "val": val, "test": test}
        (tmp_path / run / "split.json").write_text(json.dumps(split))
        paths.append(path)
    return paths


BEST = Postprocessing({"hysteresis": Hysteresis(0.25, 0.9), "min_volume": MinVolume(2)}, "argmax")


def with_own_steps(checkpoint, **steps):
    """Have a run tested with these steps."""
    content = torch.load(checkpoint, weights_only=True)
    steps = {
        name: {"_target_": f"brats_lightning.inference.postprocessing.{step.pop('step')}"} | step
        for name, step in steps.items()
    }
    target = "brats_lightning.inference.postprocessing.Postprocessing"
    content["config"]["postprocessing"] = {"_target_": target, "steps": steps}
    torch.save(content, checkpoint)


@pytest.fixture
def run(composed):
    def make(ckpt, *overrides):
        ckpt = str(ckpt) if not isinstance(ckpt, list) else f"[{','.join(map(str, ckpt))}]"
        common = [f"ckpt={ckpt}", "device=cpu", "precision=32"]
        grid = ["grid.hysteresis.low=[0.25]", "grid.hysteresis.high=[0.7,0.9]", "grid.core.threshold=[]"]
        common.append("grid.min_volume.mm3=[2]")
        return tune(composed(*common, *grid, *overrides, name="tune"))

    return make


def test_the_rules_that_score_best_are_chosen(run, runs):
    result = run(runs[0], "protocol=brats2023")
    # Only hysteresis finds the whole lesion; only its peak tells it from the look-alike, and its size from the speck.
    assert build_saved(result["chosen"]) == BEST
    assert result["score"] == 1
    assert result["cases"] == NAMES[1:3]
    names = ("hysteresis.low", "hysteresis.high", "min_volume.mm3")
    tried = {tuple(map(row["steps"].get, names)): row["score"] for row in result["tried"]}
    assert tried == pytest.approx(
        {
            (None, None, None): 2 / 28 / 3,  # the peak alone, and two that are no lesions
            (None, None, 2): 0,  # not even the peak
            (0.25, 0.7, None): 1 / 3,
            (0.25, 0.7, 2): 1 / 2,
            (0.25, 0.9, None): 1 / 2,
            (0.25, 0.9, 2): 1,
        },
        abs=1e-6,
    )
    assert result["without"] == tried[None, None, None]
    assert [row["score"] for row in result["tried"]] == sorted(tried.values(), reverse=True)
    assert {row["et"] - row["wt"] for row in result["tried"]} == {0}


def test_what_the_run_ignored_is_ignored(run, runs, tmp_path):
    for file in (tmp_path / "in").rglob("*-seg.nii.gz"):
        mask = scan()[1]
        mask[8:] = 9  # the look-alike and the speck
        save(file, mask)
    content = torch.load(runs[0], weights_only=True)
    content["config"]["data"]["ignore_label"] = 9
    torch.save(content, runs[0])
    assert run(runs[0], "protocol=brats2023")["without"] == pytest.approx(2 / 28, abs=1e-6)


def test_of_equals_the_simplest_is_chosen(run, runs):
    result = run(runs[0], "protocol=brats2024")
    # this protocol ignores specks itself
    assert list(result["chosen"]["steps"]) == ["hysteresis"]


def test_the_runs_own_rules_are_tried_too(run, runs):
    hysteresis = {"step": "Hysteresis", "low": 0.125, "high": 0.5}
    with_own_steps(runs[0], hysteresis=hysteresis, small={"step": "MinVolume", "mm3": 9, "regions": ["et"]})
    result = run(runs[0], "protocol=brats2023", "grid.hysteresis.high=[0.9]", "grid.min_volume.mm3=[]")
    # No step, the run's own `small` alone, and that behind hysteresis as in the grid and as the run has it.
    assert [row["score"] for row in result["tried"]] == pytest.approx([1, 1, 2 / 28 / 3, 0], abs=1e-6)
    assert {row["steps"].get("hysteresis.high") for row in result["tried"]} == {None, 0.5, 0.9}
    assert build_saved(result["chosen"]).steps["small"] == MinVolume(9, ["et"])


def test_a_step_that_only_the_run_knows_keeps_its_place_and_can_vary(run, runs):
    with_own_steps(
        runs[0],
        small={"step": "MinVolume", "mm3": 2, "regions": ["et"]},
        hysteresis={"step": "Hysteresis", "low": 0.25, "high": 0.9},
    )
    result = run(runs[0], "protocol=brats2023", "grid.min_volume.mm3=null", "+grid.small.mm3=[9]")
    tried = {tuple(row["steps"]): row["score"] for row in result["tried"] if "small.mm3" in row["steps"]}
    assert list(tried) == [
        ("small.mm3", "small.regions", "hysteresis.low", "hysteresis.high"),
        ("small.mm3", "small.regions"),
    ]
    assert {row["steps"].get("small.mm3") for row in result["tried"]} == {None, 2, 9}


def test_values_that_a_step_refuses_are_not_tried(run, runs, caplog):
    with_own_steps(runs[0], hysteresis={"step": "Hysteresis", "low": 0.6, "high": 0.9})
    result = run(runs[0], "grid.hysteresis.low=null", "grid.hysteresis.high=[0.5,0.9]", "grid.min_volume.mm3=null")
    assert {row["steps"].get("hysteresis.high") for row in result["tried"]} == {None, 0.9}
    assert "not tried: " in caplog.text


def test_what_does_not_vary_is_the_runs_own(run, runs):
    with_own_steps(
        runs[0],
        hysteresis={"step": "Hysteresis", "low": 0.125, "high": 0.5, "keep_surest": True},
        solid_core={"step": "SolidCore"},
        require_core={"step": "RequireCore", "keep_surest": True},
    )

    def switches(ckpt, *overrides):
        """What is tried besides nothing: whether hysteresis keeps the surest, and the steps that do not vary."""
        result = run(ckpt, *overrides)
        assert [result["without"]] == [row["score"] for row in result["tried"] if row["steps"] == {}]
        found = set()
        for row in result["tried"]:
            steps = row["steps"]
            surest = steps.get("hysteresis.keep_surest", False if "hysteresis.low" in steps else None)
            names = {name.split(".")[0] for name in steps} - {"hysteresis", "core", "min_volume"}
            found |= {(surest, *sorted(names))} if steps else set()
        return found

    own = ("require_core", "solid_core")
    assert switches(runs[0]) == {(None, *own), (True, *own)}
    # what the run was tested with is tried as it was
    given = ["grid.hysteresis.keep_surest=[false]", "grid.solid_core=[false]", "grid.fill_holes=[true]"]
    assert switches(runs[0], *given) == {
        (None, "fill_holes", "require_core"),
        (False, "fill_holes", "require_core"),
        (True, *own),
    }
    both = ["grid.solid_core=[false,true]", "grid.hysteresis.low=[]"]
    assert switches(runs[0], *both) == {(None, "require_core"), (None, *own), (True, *own)}
    # the other run has none of them: only what this was tested with, and what varies
    assert switches(runs) == {(None,), (False,), (True, *own)}


def test_what_is_null_does_not_vary(run, runs):
    result = run(runs[0], "grid.hysteresis.low=null", "grid.hysteresis.high=null", "grid.min_volume.mm3=null")
    assert [row["steps"] for row in result["tried"]] == [{}]


def test_steps_of_ones_own_vary(run, runs):
    mine = "{_target_:brats_lightning.inference.postprocessing.MinVolume,mm3:1,regions:[tc]}"
    own = [f"+postprocessing.steps.mine={mine}", "+grid.mine.mm3=[4]", "grid.hysteresis=null", "grid.min_volume=null"]
    tried = [row["steps"] for row in run(runs[0], *own)["tried"]]
    assert {} in tried
    assert {"mine.mm3": 4, "mine.regions": ["tc"]} in tried
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grid.core.threshold=0.5", r"grid.core.threshold=0.5: .* a list, e.g. 'grid.core.threshold=\[0.5\]'"),
        ("grid.solid_core=true", r"grid.solid_core=True: .* a list"),
        ("+grid.core.high=[1]", "grid.core.high is not among .*: .*, core.threshold, "),
        ("+grid.size.mm3=[1]", "grid.size.mm3 is not among .*: hysteresis, core, solid_core, "),
        ("grid.core.threshold=[1.5]", "threshold < 1"),
    ],
)
def test_a_grid_that_makes_no_sense(run, runs, override, message):
    with pytest.raises(ValueError, match=message):
        run(runs[0], override)


def test_the_core_is_tried_with_and_without(run, runs):
    values = ["grid.core.threshold=[0.99]", "grid.hysteresis.high=[0.9]", "grid.min_volume.mm3=[]"]
    result = run(runs[0], "protocol=brats2023", *values)
    names = ("hysteresis.low", "core.threshold")
    tried = {tuple(map(row["steps"].get, names)): row["et"] for row in result["tried"]}
    # the lesion's peak is 0.98: sure enough for the foreground, not for this core
    assert tried == pytest.approx(
        {(None, None): 2 / 28 / 3, (0.25, None): 1 / 2, (None, 0.99): 0, (0.25, 0.99): 0}, abs=1e-6
    )
    assert list(result["chosen"]["steps"]) == ["hysteresis"]


def test_the_choice_is_written_beside_the_checkpoint_and_used(run, runs, composed, tmp_path):
    result = run(runs[0], "protocol=brats2023")
    file = tuned_file(runs[0])
    content = OmegaConf.to_container(OmegaConf.load(file))
    assert content == result
    assert sorted(path.name for path in runs[0].parent.iterdir()) == ["best.ckpt", "best_postprocessing.yaml"]
    assert tuned(runs[0]) == BEST
    assert content["chosen"] == as_config(BEST)
    common = ["device=cpu", "precision=32", f"input={tmp_path}/in/{NAMES[5]}", f"output={tmp_path}/out"]
    predict(composed(f"ckpt={runs[0]}", "postprocessing=tuned", *common, name="predict"))
    import nibabel as nib

    assert np.array_equal(np.asanyarray(nib.load(tmp_path / f"out/{NAMES[5]}.nii.gz").dataobj), scan()[1])


def test_rules_decode_as_the_network_was_trained(run, runs):
    regions = [[[0.0], [0.0], [8.0]], [99.0, 99.0, -8 * 0.45]]  # WT as ET before; ET and TC wherever WT is
    split = (runs[0].parent.parent / "split.json").read_text()
    path = voxelwise(runs[0].parent.parent.parent / "r/checkpoints/best.ckpt", *regions, target="regions")
    (path.parent.parent / "split.json").write_text(split)
    source = str(runs[0].parent.parent.parent / "in")
    result = run(path, f"input={source}")
    expected = run(runs[0])
    assert result["chosen"] == expected["chosen"] | {"decode": "regions"}
    assert result["score"] == expected["score"]


def test_test_and_training_cases_are_never_opened(run, runs, tmp_path, monkeypatch):
    for name in {*NAMES} - {*NAMES[1:3]}:
        for path in (tmp_path / "in" / name).iterdir():
            path.write_bytes(b"not to be read")
    opened = []
    original = tuning.score_rules
    monkeypatch.setattr(tuning, "score_rules", lambda *args: opened.append(1) or original(*args))
    assert run(runs[0])["cases"] == NAMES[1:3]
    assert len(opened) == 2


def test_a_case_that_tests_any_of_the_models_is_left_out(run, runs, tmp_path):
    (tmp_path / "b/split.json").write_text(json.dumps({"train": NAMES[:1], "val": NAMES[3:4], "test": NAMES[1:2]}))
    assert run(runs)["cases"] == NAMES[2:4]
    (tmp_path / "b/split.json").write_text(json.dumps({"train": NAMES[:1], "val": [], "test": []}))
    with pytest.raises(ValueError, match=r"b/checkpoints/best\.ckpt: its run has no validation case"):
        run(runs)


def test_folds_are_tuned_together_each_case_by_the_models_it_validates(run, runs, monkeypatch):
    members = []
    original = Ensemble.__call__

    def spy(ensemble, prepared, advance=None):
        members.append([model.path for model in ensemble.models])
        return original(ensemble, prepared, advance)

    monkeypatch.setattr(Ensemble, "__call__", spy)
    result = run(runs)
    assert result["cases"] == NAMES[1:4]
    assert members == [[runs[0]], [*runs], [runs[1]]]
    assert tuned([*runs]) == build_saved(result["chosen"])


@pytest.mark.parametrize("protocol", ["brats2023", "brats2025", "brats2026"])
def test_other_protocols(run, runs, protocol):
    result = run(runs[0], f"protocol={protocol}")
    assert result["protocol"] == protocol
    assert build_saved(result["chosen"]).steps["hysteresis"] == Hysteresis(0.25, 0.9)
    assert result["score"] == 1


def test_an_unknown_protocol(run, runs):
    with pytest.raises(ValueError, match="protocol must be one of brats2023"):
        run(runs[0], "protocol=brats1999")


def test_where_the_cases_are_now(run, runs, tmp_path):
    (tmp_path / "in").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"best\.ckpt: its cases are not there; say where: input=DIR"):
        run(runs[0])
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"its cases are not there; say where: input=DIR"):
        run(runs[0])
    assert run(runs[0], f"input={tmp_path}/moved")["score"] == 1
    with pytest.raises(ValueError, match=f"1 validation cases of the run are not there or have no mask: {NAMES[1]};"):
        run(runs[0], f"input={tmp_path}/moved/{NAMES[2]}")


def test_a_checkpoint_without_its_run(run, runs, tmp_path):
    (tmp_path / "a/split.json").unlink()
    with pytest.raises(ValueError, match=r"there is no .*split\.json"):
        run(runs[0])


def test_a_faulty_case_stops_and_writes_nothing(run, runs, tmp_path):
    (tmp_path / f"in/{NAMES[1]}/{NAMES[1]}-t1c.nii.gz").write_bytes(b"nothing")
    with pytest.raises(CaseError, match=NAMES[1]):
        run(runs[0])
    assert not tuned_file(runs[0]).exists()


def test_a_source_that_is_no_list_of_cases_is_refused(run, runs):
    checkpoint = torch.load(runs[0], weights_only=True)
    checkpoint["config"]["data"]["source"] = {"_target_": "os.system", "_args_": ["true"]}
    torch.save(checkpoint, runs[0])
    with pytest.raises(ValueError, match=r"wants to run 'os\.system'"):
        run(runs[0])


@pytest.mark.parametrize("target", ["phantom.phantom_cases", "implant.implanted_cases"])
def test_a_checkpoint_fills_no_folder(run, runs, tmp_path, target):
    checkpoint = torch.load(runs[0], weights_only=True)
    more = {"background": str(tmp_path / "in")} if "implant" in target else {}
    source = {"_target_": f"brats_lightning.synthetic.{target}", "parent": str(tmp_path / "there"), "cases": 5, **more}
    checkpoint["config"]["data"]["source"] = source
    torch.save(checkpoint, runs[0])
    with pytest.raises(ValueError, match=r"its cases are not there; say where: input=DIR"):
        run(runs[0])
    assert not (tmp_path / "there").exists()
    assert run(runs[0], f"input={tmp_path}/in")["score"] == 1


@pytest.fixture
def saved(runs, composed, tmp_path):
    """Predicts cases with their probabilities into ``tmp_path/saved``."""

    def make(*overrides, ckpt=runs[0], part="val", to="saved"):
        where = [f"ckpt={ckpt}", f"input={tmp_path}/in", f"output={tmp_path}/{to}", "device=cpu", "precision=32"]
        chosen = [f"split={runs[0].parent.parent}/split.json", f"part={part}"] if part else []
        predict(composed(*where, *chosen, "probabilities=true", *overrides, name="predict"))

    return make


@pytest.fixture
def tune_saved(composed, tmp_path):
    def make(*overrides, folders="saved"):
        grid = ["grid.hysteresis.low=[0.25]", "grid.hysteresis.high=[0.7,0.9]", "grid.core.threshold=[]"]
        where = [f"probabilities={tmp_path}/{folders}" if folders[0] != "[" else f"probabilities={folders}"]
        settings = [*where, f"references={tmp_path}/in", "processes=1", "grid.min_volume.mm3=[2]"]
        return tune(composed(*settings, *grid, *overrides, name="tune"))

    return make


def test_saved_probabilities_give_the_same_choice(run, runs, saved, tune_saved, composed, tmp_path):
    saved()
    expected = run(runs[0], "protocol=brats2023")
    found = tune_saved("protocol=brats2023")
    assert found == expected
    assert found["components"] == ["hysteresis.low", "hysteresis.high", "min_volume.mm3"]
    assert found["gain"]["gain"] == found["gain"]["held_out"] == pytest.approx(1 - 2 / 28 / 3, abs=1e-6)
    assert (found["gain"]["p_no_gain"], found["gain"]["within_noise"]) == (0.25, True)  # two patients prove little
    content = OmegaConf.to_container(OmegaConf.load(tmp_path / "saved/postprocessing.yaml"))
    assert content == found
    decode(
        composed(
            f"probabilities={tmp_path}/saved", f"output={tmp_path}/out", "postprocessing=tuned", "processes=1",
            name="decode",
        )
    )  # fmt: skip
    import nibabel as nib

    for name in NAMES[1:3]:
        assert np.array_equal(np.asanyarray(nib.load(tmp_path / f"out/{name}.nii.gz").dataobj), scan()[1])
    assert tune_saved("protocol=brats2023", "processes=2") == found


def test_a_case_that_a_member_was_trained_or_is_tested_on_is_refused(runs, saved, tune_saved, tmp_path):
    saved(part=None)
    with pytest.raises(CaseError) as error:
        tune_saved()
    found = {problem.case: problem.found for problem in error.value.problems}
    assert found == {
        NAMES[0]: "a member was trained on its patient",
        NAMES[4]: "a member is tested on its patient",
    }
    assert not (tmp_path / "saved/postprocessing.yaml").exists()
    # one member of an ensemble is enough
    split = {"train": NAMES[1:2], "val": NAMES[2:4], "test": []}
    (runs[1].parent.parent / "split.json").write_text(json.dumps(split))
    saved(ckpt=f"[{runs[0]},{runs[1]}]", to="both")
    with pytest.raises(CaseError, match="1 case cannot be used") as error:
        tune_saved(folders="both")
    (problem,) = error.value.problems
    assert (problem.case, problem.found) == (NAMES[1], "a member was trained on its patient")


def test_models_that_do_not_say_what_they_were_trained_on(runs, saved, tune_saved, tmp_path):
    copy = tmp_path / "elsewhere/a.ckpt"
    copy.parent.mkdir()
    copy.write_bytes(runs[0].read_bytes())
    saved(ckpt=copy)
    with pytest.raises(CaseError) as error:
        tune_saved()
    assert {problem.found for problem in error.value.problems} == {"what a member was trained on is not known"}
    assert tune_saved("held_out=true")["cases"] == NAMES[1:3]


def test_the_mean_of_several_folders(runs, saved, tune_saved, tmp_path):
    (runs[1].parent.parent / "split.json").write_text((runs[0].parent.parent / "split.json").read_text())
    saved(to="a")
    saved(ckpt=runs[1], to="b")
    found = tune_saved("protocol=brats2023", folders=f"[{tmp_path}/a,{tmp_path}/b]")
    assert build_saved(found["chosen"]) == BEST
    assert (tmp_path / "a/postprocessing.yaml").read_text() == (tmp_path / "b/postprocessing.yaml").read_text()


def test_nothing_is_tried_if_the_choice_cannot_be_written(run, runs, saved, tune_saved, monkeypatch):
    saved()

    def refuse(folder):
        raise UnwritableFile(0, f"cannot write {folder}")

    monkeypatch.setattr("brats_lightning.tune.check_writable", refuse)
    monkeypatch.setattr(tuning, "score_rules", lambda *_: pytest.fail("scored in vain"))
    with pytest.raises(UnwritableFile, match=f"cannot write {runs[0].parent}$"):
        run(runs[0])
    with pytest.raises(UnwritableFile, match=r"cannot write .*saved$"):
        tune_saved()


def test_masks_of_saved_cases(saved, tune_saved, tmp_path, monkeypatch):
    saved()
    (tmp_path / "masks").mkdir()
    for name in NAMES[1:2]:
        mask = tmp_path / f"in/{name}/{name}-seg.nii.gz"
        (tmp_path / f"masks/{name}.nii.gz").write_bytes(mask.read_bytes())
    with pytest.raises(CaseError, match=rf"{NAMES[2]}.*0 masks"):
        tune_saved(f"references={tmp_path}/masks")
    with pytest.raises(ValueError, match="say where the masks of the cases are"):
        tune_saved("references=null")
    found = tune_saved("data=brats_mets", f"data.root={tmp_path}/in", f"references={tmp_path}/in")
    assert found["cases"] == NAMES[1:3]
    save(tmp_path / f"masks/{NAMES[2]}.nii.gz", scan()[1], np.diag([-1.0, -1, 1, 1]))
    monkeypatch.setattr(tuning, "score_rules", lambda *_: pytest.fail("scored in vain"))
    with pytest.raises(CaseError, match="mm off its probabilities"):
        tune_saved(f"references={tmp_path}/masks")
    (tmp_path / f"saved/{NAMES[1]}_probabilities.nii.gz").write_bytes(b"nothing")
    with pytest.raises(CaseError, match=NAMES[1]):
        tune_saved()


def test_either_checkpoints_or_probabilities(composed):
    for given in ([], ["ckpt=a", "probabilities=b"]):
        with pytest.raises(ValueError, match="whose validation cases choose, ckpt=…, or saved probabilities=…"):
            tune(composed(*given, name="tune"))
