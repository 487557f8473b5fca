import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from brats_lightning.config import errors, resolvers
from brats_lightning.config.build import build_data, build_segmentation
from brats_lightning.config.hints import of_options, of_words
from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.config.run_folder import new_folder
from brats_lightning.runtime import device
from brats_lightning.runtime.device import fastest_precision

CONF = config_dir()


def command(*arguments, folder, code="from brats_lightning.train import main; main()"):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


def test_configs_are_found_from_any_directory_without_heavy_imports(tmp_path):
    code = (
        "import sys; from brats_lightning.train import main\n"
        "try: main()\n"
        "finally: print('heavy:', sorted({'torch', 'pytorch_lightning', 'monai', 'scipy'} & set(sys.modules)))"
    )
    done = command("--cfg", "job", folder=tmp_path, code=code)
    assert "brats_lightning.models.UNet" in done.stdout
    assert "heavy: []" in done.stdout


def test_a_mistyped_choice_lists_the_choices(tmp_path):
    done = command("model=resnet", folder=tmp_path)
    assert done.returncode != 0
    assert "resunet" in done.stderr + done.stdout


def test_mistyped_options_get_hints_of_the_chosen_groups(tmp_path):
    done = command("modle=unet", "sampling=slices", "sampling.in_plan=[8,8]", "seed=1", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: modle: there is no such setting; did you mean model=unet?",
        "sampling.in_plan: there is no such setting; did you mean 'sampling.in_plane=[8,8]'?",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("submission", ["masks"], "masks: options are key=value; did you mean predictions=masks?"),
        ("submission", ["masks", "predictions=x"], "masks: options are key=value; --help lists them"),
        ("predict", ["ckpt=a", "in"], "in: options are key=value; did you mean input=in or output=in?"),
        ("train", ["data=brats_mets", "cases"], "cases: options are key=value; did you mean data.root=cases?"),
    ],
)
def test_a_word_without_key_is_told_which_keys_are_wanted(name, line, said):
    assert of_words(name, line) == [said]


def test_a_path_that_the_shell_split(tmp_path):
    (tmp_path / "my cases").mkdir()
    line = [f"data.root={tmp_path}/my", "cases"]
    whole = f"data.root={tmp_path}/my cases"
    assert of_words("train", line) == [f"the shell split {whole} at its space; quote it: '{whole}'"]


def test_no_hint_where_nothing_is_near_or_hydra_lists_the_choices():
    assert of_options("predict", ["ckp=a", "qqqqqqqq=1", "+new=1", "--cfg=job"]) == [
        "ckp: there is no such setting; did you mean ckpt=a?",
        "qqqqqqqq: there is no such setting; --help lists all of them",
    ]
    assert of_options("train", ["model=unett", "modle=unet"]) == []


@pytest.mark.parametrize("flag", [["--config-dir={}"], ["--config-dir", "{}"], ["-cd", "{}"]])
def test_options_of_the_users_own_configs(tmp_path, flag):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("_target_: torch.nn.Identity\ndepth: 3\n")
    line = [*(part.format(tmp_path) for part in flag), "model=mine", "model.dept=4"]
    assert of_options("train", line) == ["model.dept: there is no such setting; did you mean model.depth=4?"]


def test_an_option_of_another_choice():
    option = "postprocessing.steps.hysteresis.low"
    for command in ("train", "predict"):
        found = of_options(command, [f"{option}=0.3"])
        assert found == [f"{option}: did you mean it with postprocessing=confident or hysteresis or strict?"]
    found = of_options("train", ["optimizer.momentum=0.5"])
    assert found == ["optimizer.momentum: did you mean it with optimizer=sgd?"]


@pytest.mark.parametrize("model", ["unet", "attention_unet", "resunet"])
@pytest.mark.parametrize("loss", ["dice", "focal", "dice_focal"])
def test_every_pair_composes_with_the_channels_of_the_data(composed, model, loss):
    cfg = composed(f"model={model}", f"loss={loss}", "data.modalities=[t1c]", "data.labels=[netc,snfh,et,rc]")
    assert (cfg.model.in_channels, cfg.model.out_channels) == (1, 5)
    assert cfg.name == f"{model}_{loss}"


def choices(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={choice}"
        for group in (
            "sampling",
            "augmentation",
            "copy_paste",
            "optimizer",
            "scheduler",
            "callbacks",
            "logger",
            "trainer",
            "model",
        )
        for choice in choices(group)
    ]
    + [f"debug={choice}" for choice in choices("debug")]
    + [f"experiment={choice}" for choice in choices("experiment")],
)
def test_every_choice_composes(composed, override):
    mandatory = ["sampling.predictions=masks"] if override == "sampling=hard" else []
    assert composed(override, *mandatory, plain=True).data.in_channels == 4


@pytest.mark.parametrize("labels", [["netc", "snfh", "et"], ["netc", "snfh", "et", "rc"]])
def test_channels_follow_from_the_target(composed, labels):
    chosen = f"data.labels=[{','.join(labels)}]"
    assert composed(chosen, "target=classes").model.out_channels == len(labels) + 1
    cfg = composed(chosen, "target=regions", "model=resunet", "loss=monai_dice_focal")
    assert cfg.model.out_channels == cfg.data.out_channels == len(labels)
    extra = composed(chosen, "target=regions", "target_extra=[netc,snfh]")
    assert extra.model.out_channels == extra.data.out_channels == len(labels) + 2
    assert (cfg.loss.loss.softmax, cfg.loss.loss.sigmoid, cfg.loss.loss.to_onehot_y) == (False, True, False)


def test_mandatory_values_are_named(composed):
    with pytest.raises(ValueError, match=r"data\.root"):
        composed("data=brats_mets")


def test_mappings_take_new_keys(composed):
    assert dict(composed("data.label_map={4:3}").data.label_map) == {4: 3}


def keys_without_comment(path):
    """Lines that set a value and carry no comment, neither on the line nor on the one above."""
    lines = path.read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        setting = re.match(r"\s*(-\s)?[\w\"]+: *(\S.*)?$", line)
        structural = re.match(r"\s*(_\w+_|defaults|hydra|- )", line)
        opens_block = setting and not setting[2]
        if setting and not structural and not opens_block and "#" not in line:
            above = lines[number - 1].strip() if number else ""
            if not above.startswith("#"):
                bare.append(f"{path.name}: {line.strip()}")
    return bare


def test_every_key_has_a_comment():
    bare = [line for path in CONF.rglob("*.yaml") for line in keys_without_comment(path)]
    interpolated = [line for line in bare if "${" in line]  # a reference says what it is
    assert sorted(set(bare) - set(interpolated)) == []


def test_balanced_weights_replace_their_word(composed):
    cfg = composed("loss.parts.dice.class_weights=balanced")

    class Data:
        scheme, partly_labelled = build_data(cfg).scheme, False

        def balanced_class_weights(self):
            return [0.1, 0.4, 0.2, 0.3]

    model = build_segmentation(cfg, Data())
    weights = dict(model.loss.named_buffers())
    assert any(w is not None and w.numel() >= 3 for w in weights.values())
    model = build_segmentation(composed("target=regions", "loss.parts.dice.class_weights=balanced"), Data())
    (weights,) = dict(model.loss.named_buffers()).values()
    assert weights.tolist() == pytest.approx([0.3, (0.4**-2 + 0.3**-2) ** -0.5, (0.4**-2 + 0.2**-2 + 0.3**-2) ** -0.5])
    assert cfg.loss.parts.dice.class_weights == "balanced"


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu sse avx512_bf16 avx", "bf16-mixed"), ("fpu sse avx512_bf16x", "32-true")]
)
def test_precision_follows_the_processor(monkeypatch, tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(device, "Path", lambda _: tmp_path / "cpuinfo")
    assert fastest_precision("cpu") == expected


def test_fused_optimiser_gives_way_to_clipping_under_a_loss_scaler(composed):
    cfg = composed("trainer.precision=16-mixed")
    data = build_data(cfg)
    assert build_segmentation(cfg, data).make_optimizer.keywords["fused"] is False
    cfg = composed("trainer.precision=bf16-mixed")
    assert build_segmentation(cfg, data).make_optimizer.keywords["fused"] is True


def test_the_installed_package_carries_its_configs(monkeypatch, tmp_path):
    monkeypatch.setattr(resolvers, "__file__", str(tmp_path / "site-packages/brats_lightning/config/resolvers.py"))
    assert config_dir() == tmp_path / "site-packages/brats_lightning/conf"
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(r'force-include\]\s*conf = "brats_lightning/conf"', pyproject)


@pytest.mark.parametrize(("mode", "direction"), [("max", "maximize"), ("min", "minimize")])
def test_sweeps_go_the_objectives_way(mode, direction):
    register_resolvers()
    cfg = OmegaConf.create({"objective_mode": mode, "direction": "${direction:${objective_mode}}"})
    assert cfg.direction == direction
    assert "${direction:${objective_mode}}" in (CONF / "hydra/sweeper/optuna.yaml").read_text()


def test_the_window_is_the_deepest_block_that_is_drawn(composed):
    cfg = composed("sampling=slices", "sampling.depth=[16,50]", "sampling.multiple_of=16", plain=True)
    assert list(cfg.inference.window) == [48, *cfg.sampling.in_plane]


def test_resolved_configs_hold_no_references(composed):
    text = OmegaConf.to_yaml(composed())
    assert "${" not in text


def test_what_is_wrong_with_settings_is_said_in_one_line(tmp_path):
    done = command("data=brats_mets", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: these values must be given on the command line: data.root=…"


def test_only_our_own_errors_are_shortened():
    def foreign():
        raise ValueError("from a library or a bug in the tests")

    with pytest.raises(ValueError, match="library") as caught:
        foreign()
    assert not errors.raised_here(caught.value)
    with pytest.raises(ValueError, match="must be given") as caught:
        resolved(OmegaConf.create({"a": {"b": "???"}}))
    assert errors.raised_here(caught.value)


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    asked = str(tmp_path / "train/2026-01-01_00-00-00_unet")
    assert new_folder(asked) == asked
    assert new_folder(asked) == asked  # the same run
    for number in (2, 3):
        new_folder.cache_clear()  # another process
        assert new_folder(asked) == f"{asked}-{number}"
    assert len(list((tmp_path / "train").iterdir())) == 3


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        new_folder(str(tmp_path / "file/run"))
    assert re.fullmatch(
        r"error: the run folder: cannot write \S+/file: .*; or set paths.outputs=DIR\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.normalisation.method=zscroe", "data.normalisation: method is 'zscroe'; expected one of zscore, minmax"),
        ("data.normalisation.low=99.9", "data.normalisation: percentiles 99.9 … 99.5; expected"),
        ("data.preprocessing.spacing=[1,1]", r"data.preprocessing: spacing is \[1, 1\]; expected three"),
        ("+data.preprocessing.spacings=1", "data.preprocessing: .*unexpected keyword argument 'spacings'"),
        ("data.label_map={300:1}", "data.label_map must map labels 1 … 255"),
        ("data.ignore_label=3", r"data.ignore_label must be one label of 4 … 255.*; got 3"),
    ],
)
def test_settings_of_the_data_are_checked_before_anything_is_read(composed, override, message):
    with pytest.raises(ValueError, match=message):
        build_data(composed("data=brats_mets", "data.root=nowhere", override, name="preprocess"))
