import json
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.data.cases import Case
from tests.benchmarks import ablation as ablation_module
from tests.benchmarks import duel as duel_module
from tests.benchmarks.ablation import SCORES, recipes, table
from tests.benchmarks.arena.nnunet import DiceCrossEntropy, ForegroundOversampling, PlainConvUNet
from tests.benchmarks.arena.report import SCORES as REPORTED
from tests.benchmarks.arena.report import difference_cell, interval_note, paired_difference, write_report
from tests.benchmarks.arena.runs import CONF, ArenaError, Run, make_run, str_time
from tests.benchmarks.duel import check_contestants, choose_cases, duel

TINY = "quick model.widths=[4,8] sampling.size=[16,16,16] inference.window=[32,32,32]"


def composed(name, *overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, [f"hydra.searchpath=[file://{config_dir()}]", "paths.run_dir=.", *overrides])
    return resolved(cfg)


# ---- the whole way


def test_a_duel_trains_scores_reports_and_never_repeats(tmp_path, shared_outputs, monkeypatch, capsys):
    data = [
        "data=phantom_tiny",
        f"paths.phantom_dir={shared_outputs}/phantoms",
        f"paths.cache_dir={shared_outputs}/cache",
    ]
    contestants = f"contestants=['{TINY}','{TINY} inference.mirror_axes=[2]']"
    cfg = composed("duel", *data, contestants, "minutes=0.05", "threads=1", f"output={tmp_path}")
    cfg.common.append("data.workers=0")
    carried_out = []
    carry_out = Run.carry_out
    monkeypatch.setattr(Run, "carry_out", lambda run: carried_out.append(run) or carry_out(run))

    first = duel(cfg, data)
    # The second only predicts otherwise: it is another look at the same training.
    assert carried_out[0].folder == carried_out[1].folder
    assert carried_out[0].key["prediction"] != carried_out[1].key["prediction"]
    assert first[0]["steps"] == first[1]["steps"] > 0
    assert first[0]["scores"] != first[1]["scores"]
    assert list(first[0]["scores"]) == first[0]["key"]["test"]
    assert {*REPORTED.values(), *SCORES.values()} <= set(first[0]["scores"][first[0]["key"]["test"][0]])
    for scores in first[0]["scores"].values():
        assert 0 <= scores["dice_wt"] <= 1
        assert 0 <= scores["brats2024/lesion_dice_mean"] <= 1
        assert scores["false_positives"] >= 0
        assert scores["dice_mean"] == pytest.approx(np.mean([scores[f"dice_{r}"] for r in ("et", "tc", "wt")]))
    masks = [
        carried_out[0].folder / f"masks_{run.key['prediction']}_{run.key['prediction_code']}" for run in carried_out
    ]
    for folder in masks:
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"{c}.nii.gz" for c in first[0]["scores"])
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert f"seed 0: {first[0]['steps']} steps · Dice WT" in printed
    assert (tmp_path / "table.md").read_text() in printed

    assert duel(cfg, data) == first
    assert len(carried_out) == 2
    cfg.seed = [0, 1]
    monkeypatch.setattr(Run, "carry_out", lambda run: carried_out.append(run) or first[0] | {"key": run.key, "seed": 1})
    results = duel(cfg, data)
    assert [run.seed for run in carried_out[2:]] == [1, 1]
    assert len(results) == 4
    assert "| mean |" in (tmp_path / "table.md").read_text()


def run_of(case_files, tmp_path, contestant="quick", seed=0, minutes=1, threads=1, overrides=()):
    cases = {"train": case_files[:1], "test": case_files[1:]}
    fixed = ["data=brats_mets", f"data.root={tmp_path}", *overrides]
    return make_run("name", contestant, seed, fixed, cases, minutes, threads, tmp_path)


def test_a_result_is_known_by_all_that_it_depends_on(tmp_path):
    cases = [case(f"BraTS-MET-0000{i}-000", tmp_path) for i in range(2)]
    key = run_of(cases, tmp_path).key
    assert run_of(cases, tmp_path).key == key
    assert run_of(cases, tmp_path, overrides=["paths.outputs=elsewhere", "data.cache_workers=7"]).key == key
    others = [
        run_of(cases, tmp_path, seed=1),
        run_of(cases, tmp_path, minutes=2),
        run_of(cases, tmp_path, threads=2),
        run_of(cases[::-1], tmp_path),
        run_of(cases, tmp_path, "quick optimizer.lr=1"),
        run_of(cases, tmp_path, "quick inference.overlap=0.25"),
    ]
    cases[0].mask.write_text("another size")
    others.append(run_of(cases, tmp_path))
    keys = [json.dumps(run.key) for run in others]
    assert len({*keys, json.dumps(key)}) == len(others) + 1
    assert len({run.folder for run in others}) == len(others)


def test_a_failed_run_shows_its_last_words(tmp_path):
    run = run_of([case(f"BraTS-MET-0000{i}-000", tmp_path) for i in range(2)], tmp_path)
    run.key["threads"] = "many"
    with pytest.raises(ArenaError, match=r"(?s)name, seed 0, failed.*log.txt.*invalid literal for int.*'many'"):
        run.carry_out()


def test_a_version_that_only_predicts_otherwise_shares_the_training(tmp_path, monkeypatch):
    cases = [case(f"BraTS-MET-0000{i}-000", tmp_path) for i in range(2)]
    sources = [
        tmp_path / f"brats_lightning/{name}.py"
        for name in ("inference/postprocessing", "inference/windows", "losses/dice")
    ]
    idle = [tmp_path / f"{name}.py" for name in ("brats_lightning/tune", "tests/benchmarks/arena/report")]
    for source in [*sources, *idle]:
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("pass")
    monkeypatch.setattr("tests.benchmarks.arena.runs.PROJECT", tmp_path)
    first = run_of(cases, tmp_path)
    for source, shared in zip(sources, (True, True, False), strict=True):
        source.write_text("changed")
        changed = run_of(cases, tmp_path)
        assert changed.key != first.key
        assert (changed.folder == first.folder) is shared
        source.write_text("pass")
    for source in idle:
        source.write_text("changed")
    assert run_of(cases, tmp_path).key == first.key


@pytest.mark.parametrize("part", ["code", "prediction_code"])
def test_no_result_of_sources_that_changed_meanwhile(part, tmp_path):
    run = run_of([case(f"BraTS-MET-0000{i}-000", tmp_path) for i in range(2)], tmp_path)
    run.key[part] = "of another version"
    with pytest.raises(ArenaError, match="the program has changed since this arena was planned; start it again"):
        run.carry_out()


# ---- cases and contestants


def case(name, folder, mask=True):
    patient = name[:-4]
    files = {m: folder / f"{name}-{m}.nii.gz" for m in ("t1n", "t1c", "t2w", "t2f", "seg")}
    for path in files.values():
        path.write_text(name)
    seg = files.pop("seg")
    return Case(name, patient, name[-3:], files, seg if mask else None)


@pytest.fixture
def cases(tmp_path):
    names = ["00001-000", "00001-001", "00002-000", "00003-000", "00004-000"]
    return [case(f"BraTS-MET-{n}", tmp_path) for n in names] + [case("BraTS-MET-00009-000", tmp_path, mask=False)]


def lists(train=None, test=None):
    data = {"root": "DIR", "test_share": 0.25, "split_seed": 0}
    return OmegaConf.create({"train": train, "test": test, "data": data})


def ids(chosen):
    return {part: [c.id[10:] for c in found] for part, found in chosen.items()}


def test_cases_are_drawn_by_patient_or_named(cases):
    drawn = ids(choose_cases(cases, lists()))
    assert sorted(drawn["train"] + drawn["test"]) == sorted(c.id[10:] for c in cases[:5])
    assert len(drawn["test"]) in (1, 2)
    assert drawn == ids(choose_cases(cases, lists()))
    named = choose_cases(cases, lists(["BraTS-MET-00003-000"], ["BraTS-MET-00002-000"]))
    assert ids(named) == {"train": ["00003-000"], "test": ["00002-000"]}
    rest = choose_cases(cases, lists(test=["BraTS-MET-00001-000"]))
    assert ids(rest) == {"train": ["00002-000", "00003-000", "00004-000"], "test": ["00001-000"]}


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            ["BraTS-MET-00003-001"],
            None,
            "train: there is no labelled case BraTS-MET-00003-001 among the 5 in DIR; near are .*00003-000",
        ),
        (["BraTS-MET-00009-000"], None, "train: there is no labelled case BraTS-MET-00009-000"),
        (["BraTS-MET-00002-000"] * 2, None, "train: BraTS-MET-00002-000 is listed twice"),
        ([], None, "train is empty"),
        (["BraTS-MET-00001-000"], ["BraTS-MET-00001-001"], r"00001-001 \(trains as BraTS-MET-00001-000\)"),
        ([f"BraTS-MET-0000{i}-000" for i in (1, 2, 3, 4)], None, "test: no case is left of the 5"),
    ],
)
def test_cases_that_make_no_duel(cases, train, test, message):
    with pytest.raises(ArenaError, match=message):
        choose_cases(cases, lists(train, test))


def test_named_cases_are_taken_in_the_order_they_are_scored_in(cases):
    test = ["BraTS-MET-00004-000", "BraTS-MET-00001-001", "BraTS-MET-00001-000"]
    chosen = choose_cases(cases, lists(["BraTS-MET-00003-000"], test))
    assert [case.id for case in chosen["test"]] == sorted(test)
    assert [case.id for case in chosen["train"]] == ["BraTS-MET-00003-000"]


def test_unknown_contestants_are_named_with_near_ones():
    check_contestants(["quick", "monai_segresnet optimizer.lr=1e-3", "nnunet"])
    with pytest.raises(ArenaError, match="no experiment nnunett; did you mean nnunet"):
        check_contestants(["nnunett optimizer.lr=1"])


def test_minutes():
    assert [str_time(m) for m in (0.05, 12, 1500.5)] == ["00:00:00:03", "00:00:12:00", "01:01:00:30"]
    with pytest.raises(ArenaError, match="at least a second"):
        str_time(0)


# ---- intervals


def test_paired_intervals():
    scores = np.array([[0.1, 0.5, math.nan, 0.9]])
    assert paired_difference(scores, scores, "abcd", 1000) == (0, 0, 0)
    # Differences of 0 and 1: a resample of two has mean 0, ½ or 1 with probability ¼, ½, ¼.
    assert paired_difference(np.array([[0.0, 1.0]]), np.array([[0.0, 0.0]]), "ab", 1000) == (0.5, 0, 1)
    # Two cases of one patient are always drawn together.
    assert paired_difference(np.array([[0.0, 1.0, 0.5]]), np.zeros((1, 3)), "aab", 1000) == (0.5, 0.5, 0.5)
    # Seeds are averaged before, one that lacks the score left out. In the last case the peer is right about nothing
    # being there, and ours is not: 0.9 against 1.
    ours = np.array([[0.2, 0.4, 0.9], [0.4, math.nan, 0.9]])
    peer = np.array([[0.1, 0.2, math.nan]])
    mean, low, high = paired_difference(ours, peer, "abc", 1000)
    assert (mean, low, high) == pytest.approx((0.1, -0.1, 0.2))


def test_intervals_are_called_what_they_are():
    assert interval_note(1) == "of one patient"
    assert interval_note(2) == "with the span of the two patients' means, no confidence interval"
    assert interval_note(7) == "with 95 % interval (bootstrap over patients, too narrow of only 7)"
    assert interval_note(10) == "with 95 % interval (bootstrap over patients)"
    # of two patients it is that: their means are 0.1 and -0.3
    ours, peer = np.array([[0.4, 0.6, 0.2]]), np.array([[0.4, 0.4, 0.5]])
    assert paired_difference(ours, peer, ["a", "a", "b"], 1000)[1:] == pytest.approx((-0.3, 0.1))


def test_the_table_counts_patients_not_cases(tmp_path):
    cases = ["A-100", "A-101", "B-100", "B-101"]
    key = {
        "patients": ["A", "A", "B", "B"],
        "train": ["C"],
        "test": cases,
        "minutes": 1,
        "threads": 1,
        "processor": "x",
    }
    results = [
        {
            "contestant": name,
            "seed": 0,
            "steps": 3,
            "key": key,
            "scores": {c: dict.fromkeys(REPORTED.values(), score) for c in cases},
        }
        for name, score in (("ours", 0.75), ("peer", 0.5))
    ]
    text = write_report(results, ["ours", "peer"], tmp_path, 100)
    assert f"ours minus …, {interval_note(2)}, seeds averaged first" in text
    assert "| peer | " + " | ".join(["+0.250 [+0.250, +0.250]"] * len(REPORTED)) + " |" in text


def test_cells_of_differences():
    assert difference_cell(0.1, -0.02, 0.2) == "+0.100 [-0.020, +0.200]"
    assert difference_cell(0.1, math.nan, math.nan) == "+0.100"  # of a single patient
    assert difference_cell(math.nan, math.nan, math.nan) == "–"


# ---- nnU-Net


def test_nnunet_loss_by_hand():
    target = torch.tensor([1, 0, 0, 0]).reshape(2, 1, 1, 2)  # of two samples, one empty
    logits = torch.zeros(2, 2, 1, 1, 2, requires_grad=True)  # p = ½ everywhere
    by_batch = DiceCrossEntropy(batch_dice=True, smooth=0.0)(logits, target)
    assert by_batch.item() == pytest.approx(math.log(2) - 2 * 0.5 / (2 + 1))
    by_sample = DiceCrossEntropy(batch_dice=False, smooth=0.0)(logits, target)
    assert by_sample.item() == pytest.approx(math.log(2) - (2 * 0.5 / (1 + 1) + 0) / 2)
    by_sample.backward()
    assert logits.grad.isfinite().all()


def test_nnunet_deep_supervision_by_hand():
    loss = DiceCrossEntropy(smooth=0.0)
    target = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    target[0, 3, 3, 3] = 1  # the nearest voxel of the last one at half the resolution
    fine, half = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 2, 2, 2)
    of_fine = math.log(2) - 2 * 0.5 / (32 + 1)
    of_half = math.log(2) - 2 * 0.5 / (4 + 1)
    unused = torch.full((1, 2, 1, 1, 1), math.nan)
    assert loss(fine, target).item() == pytest.approx(of_fine)
    assert loss([fine, half, unused], target).item() == pytest.approx((of_fine + of_half / 2) / 1.5)


def test_nnunet_patches_are_centred_on_classes():
    class Cached:
        id, shape, lesions = "case", (40, 40, 40), ()

        def positions(self):
            raise AssertionError("the mask is asked, which knows all voxels of a class")

        def mask(self):
            mask = np.zeros(self.shape, np.uint8)
            mask[4:24, 4:24, 4:24] = 2  # 8000 times as many voxels as the other class has
            mask[30, 30, 35] = 3
            return mask

    rng = np.random.default_rng(0)
    always = ForegroundOversampling((8, 8, 8), 1.0)
    starts = [always.draw_start(Cached(), (8, 8, 8), rng) for _ in range(400)]
    rare = [start for start in starts if start == (26, 26, 31)]
    assert 150 < len(rare) < 250
    assert all(max(start) < 20 for start in starts if start not in rare)
    half = ForegroundOversampling((8, 8, 8), 0.5)
    hits = sum(half.draw_start(Cached(), (8, 8, 8), rng) == (26, 26, 31) for _ in range(400))
    assert 60 < hits < 140
    assert always.draw_start(Cached(), (64, 8, 8), rng)[0] == -12
    assert always.case_weights([1, 2]).tolist() == [0.5, 0.5]


def test_nnunet_network_is_the_original():
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    torch.manual_seed(0)
    widths = [8, 16, 32, 40]
    ours = PlainConvUNet(4, 3, widths)
    settings = {"norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    settings |= {"nonlin": torch.nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True}
    sizes = (4, 4, widths, torch.nn.Conv3d, 3, [1, 2, 2, 2], 2, 3, 2)
    theirs = unet.PlainConvUNet(*sizes, conv_bias=True, **settings)
    theirs.apply(theirs.initialize)

    def copy(block, stack):
        for n, convolution in ((1, stack.convs[0]), (2, stack.convs[1])):
            getattr(block, f"conv{n}").load_state_dict({"weight": convolution.conv.weight})  # a norm undoes the bias
            getattr(block, f"norm{n}").load_state_dict(convolution.norm.state_dict())

    for level, stage in zip(ours.encoder, theirs.encoder.stages, strict=True):
        copy(level[0], stage[0])
    parts = theirs.decoder.stages, theirs.decoder.transpconvs, theirs.decoder.seg_layers
    for level, head, stage, up, seg in zip(ours.decoder[::-1], ours.heads[::-1], *parts, strict=True):
        copy(level.blocks[0], stage)
        # Ours joins the skip first, theirs the coarser features.
        first = level.blocks[0].conv1.weight.data
        first.copy_(first.roll(first.shape[1] // 2, dims=1))
        level.up.load_state_dict(up.state_dict())
        head.load_state_dict(seg.state_dict())

    image = torch.randn(2, 4, 16, 24, 16)
    for a, b in zip(ours(image), theirs(image), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# ---- ablation


def test_parts_are_recipes_that_compose(tmp_path):
    cfg = composed("ablation", "data=brats_mets", f"data.root={tmp_path}")
    found = recipes(cfg)
    assert found["plain"] == "plain"
    assert found["deep_supervision"] == "plain model.deep_supervision=2"
    assert set(found) == {*cfg.parts, "together"}
    files = [case(f"BraTS-MET-0000{i}-000", tmp_path) for i in range(2)]
    runs = {part: run_of(files, tmp_path, recipe) for part, recipe in found.items()}
    predicted = {"mirroring", "hysteresis", "core", "confident"}  # without another training
    folders = {part: run.folder for part, run in runs.items()}
    assert {part for part in runs if folders[part] == folders["plain"]} == {"plain", *predicted}
    assert folders["lesion_focal_confident"] == folders["lesion_focal"]
    assert len(set(folders.values())) == len(runs) - len(predicted) - 1
    together = runs["together"].config
    assert together.target == "regions"
    assert len(together.data.modalities) == 5
    assert together.postprocessing.steps.hysteresis.high is not None


def test_ablation_table_by_hand():
    def result(part, seed, steps, value):
        lesions = {"brats2024/lesion_dice_mean": value, "brats2026/small_f1_mean": None, "false_positives": 2.0}
        scores = lesions | {"dice_mean": value}
        return {
            "contestant": part,
            "seed": seed,
            "steps": steps,
            "scores": {"a": scores, "b": scores | {"dice_mean": 0}},
        }

    results = [result("plain", 0, 100, 0.4), result("plain", 1, 100, 0.6), result("ema", 0, 80, 0.8)]
    lines = table(results, ["plain", "ema", "blob"]).splitlines()  # gains are over plain's run of the same seed
    assert lines[2].startswith("| plain | 2 | 0.250 (0.200 – 0.300) |  | 0.500 (0.400 – 0.600) |")
    assert lines[3].startswith("| ema | 1 | 0.400 (0.400 – 0.400) | +0.200 | 0.800 (0.800 – 0.800) | +0.400 |")
    assert lines[3].endswith("| 2.000 (2.000 – 2.000) | +0.000 | 80 | 1.25 |")
    assert len(lines) == 4


def test_ablation_runs_the_chosen_part_and_shows_all_that_are_known(tmp_path, cases, monkeypatch):
    cfg = composed(
        "ablation", "data=brats_mets", f"data.root={tmp_path}", f"output={tmp_path}/out", "seed=0", "part=ema"
    )
    cfg.parts = {"plain": [], "ema": ["callbacks=averaged"]}
    cfg.together = ["ema"]
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(duel_module, "choose_cases", lambda found, cfg: {"train": cases[:2], "test": cases[2:4]})
    scores = dict.fromkeys([*REPORTED.values(), *SCORES.values()], 0.5)
    carried_out = []

    def carry_out(run):
        carried_out.append(run.contestant)
        values = {c.id: scores for c in cases[2:4]}
        return {"contestant": run.contestant, "seed": run.seed, "key": run.key, "steps": 10, "scores": values}

    monkeypatch.setattr(Run, "carry_out", carry_out)
    data = ["data=brats_mets", f"data.root={tmp_path}"]
    ablation_module.ablation(cfg, data)
    assert carried_out == ["ema"]
    cfg.part = None
    shown = ablation_module.ablation(cfg, data)
    assert carried_out == ["ema", "plain"]  # together is ema alone here, and known
    assert [result["contestant"] for result in shown] == ["plain", "ema", "together"]
    cfg.part = "emma"
    with pytest.raises(ArenaError, match="there is no emma, only ema"):
        ablation_module.ablation(cfg, data)
