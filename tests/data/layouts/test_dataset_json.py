from pathlib import Path

import pytest

from brats_lightning.data.cases import CaseError
from brats_lightning.data.layouts.dataset_json import channel_modalities, label_map, modality_of, read_json

FILE = Path("DIR/dataset.json")
CLASSES = ("netc", "snfh", "et")


@pytest.mark.parametrize(
    ("words", "modality"),
    [
        (["T1", "t1n", "T1w", "T1-pre"], "t1n"),
        (["T1c", "t1ce", "T1 Gd", "T1post", "T1w_post", "t1gd"], "t1c"),
        (["T2", "T2w"], "t2w"),
        (["FLAIR", "Flair", "T2-FLAIR", "t2f"], "t2f"),
        (["ADC", "CT", "", "T1map"], None),
    ],
)
def test_words_for_sequences(words, modality):
    assert {modality_of(word) for word in words} == {modality}


@pytest.mark.parametrize(
    "content",
    [
        {"channel_names": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}},
        {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}},
        {"modality": ["FLAIR", "T1w", "t1gd", "T2w"], "labels": None},
    ],
)
def test_channels_by_number(content):
    assert channel_modalities(content, None, FILE) == {0: "t2f", 1: "t1n", 2: "t1c", 3: "t2w"}


def test_channels_can_be_named_and_left_out():
    content = {"channel_names": {"0": "T1", "1": "ADC", "2": "Gd"}}
    assert channel_modalities(content, {1: None, "2": "T1ce"}, FILE) == {0: "t1n", 1: None, 2: "t1c"}


def faults(function, *arguments):
    with pytest.raises(CaseError, match="the data cannot be used") as error:
        function(*arguments)
    assert {problem.file for problem in error.value.problems} == {str(FILE)}
    return [(problem.found, problem.remedy) for problem in error.value.problems]


def test_all_faulty_channels_are_named_with_the_override_to_give():
    found = faults(channel_modalities, {"modality": {"0": "T1", "1": "ADC", "2": "T1w", "3": "CT"}}, None, FILE)
    assert [what for what, _ in found] == ["channel 1 is 'ADC'", "channel 3 is 'CT'", "channels 0 and 2 are both t1n"]
    assert "'data.channels={1:null}'" in found[0][1]
    assert "'data.channels={2:null}'" in found[2][1]
    assert faults(channel_modalities, {}, None, FILE)[0][0] == "no channel_names and no modality"
    assert faults(channel_modalities, {"channel_names": {"T1": 0}}, None, FILE)[0][0] == "channel T1 is 0"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3}, None),
        ({"background": 0, "edema": 1, "necrosis": 2, "enhancing tumor": 3}, {1: 2, 2: 1}),
        ({"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}, {1: 2, 2: 1}),
        ({"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}, {1: 2, 2: 1}),
        ({"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": [3], "ignore": 4}, {1: 2, 2: 1}),
        ({"background": 0, "WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}, {4: 3}),
        ({"background": 0, "peritumoral oedema": 1, "core": 2, "enhancing": 3}, {1: 2, 2: 1}),
        ({"background": 0, "enhancing": 1}, {1: 3}),
        ({}, None),
    ],
)
def test_labels_by_what_they_mean(labels, expected):
    assert label_map({"labels": labels}, CLASSES, FILE) == expected


def test_cavities_and_classes_of_ones_own():
    labels = {"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": [3], "RC": [4]}
    assert label_map({"labels": labels}, (*CLASSES, "rc"), FILE) == {1: 2, 2: 1}
    ((found, remedy),) = faults(label_map, {"labels": labels}, CLASSES, FILE)
    assert found == "label 4 is 'RC'"
    assert remedy.startswith("add rc to data.labels, or say which")
    assert "'data.label_map={1:2,2:1,3:3,4:…}'" in remedy
    assert label_map({"labels": {"background": 0, "Metastasis": 2}}, ("metastasis",), FILE) == {2: 1}


def test_labels_that_are_not_certain():
    labels = {"background": 0, "tumor core": 1, "edema": 2, "lesion": 3}
    (core, _), (lesion, remedy) = faults(label_map, {"labels": labels}, CLASSES, FILE)
    assert core == "label 1 is 'tumor core', which may be et or netc"
    assert lesion == "label 3 is 'lesion'"
    assert "'data.label_map={1:…,2:2,3:…}'" in remedy
    # What is to be ignored would be taken for enhancing tumour.
    ignored = {"background": 0, "edema": 1, "enhancing": 2, "ignore": 3}
    assert faults(label_map, {"labels": ignored}, CLASSES, FILE)[0][0] == "label 3 is ignore"
    assert faults(label_map, {"labels": {"edema": "one"}}, CLASSES, FILE)[0][0].startswith("the labels ")


@pytest.mark.parametrize(("text", "found"), [("{", "cannot be read as JSON"), ("[1]", "list at its top level")])
def test_files_of_another_kind(tmp_path, text, found):
    path = tmp_path / "dataset.json"
    path.write_text(text)
    with pytest.raises(CaseError, match="the data cannot be used") as error:
        read_json(path, "a dataset.json")
    (problem,) = error.value.problems
    assert problem.found.startswith(found)
    assert (problem.file, problem.expected) == (str(path), "a dataset.json")


def test_a_byte_order_mark_is_no_part_of_the_content(tmp_path):
    (tmp_path / "dataset.json").write_bytes(b'\xef\xbb\xbf{"labels": {}}\r\n')
    assert read_json(tmp_path / "dataset.json", "a dataset.json") == {"labels": {}}
