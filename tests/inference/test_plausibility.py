from brats_lightning.inference.plausibility import MAX_LESIONS, MAX_SHARE, implausible


def sizes(et, wt=1):
    return {"et": {"lesions": et, "volume_ml": 1.0}, "wt": {"lesions": wt, "volume_ml": 2.0}}


def test_what_patients_have_is_plausible():
    assert implausible({}, {}) == []
    assert implausible({"a": sizes(0, 0), "b": sizes(60)}, {"a": 0.0, "b": 0.1}) == []
    assert implausible({"a": sizes(MAX_LESIONS)}, {"a": MAX_SHARE}) == []


def test_noise_and_a_full_brain():
    said = implausible({"a": sizes(27398, 500), "b": sizes(3)}, {"a": 0.1, "b": 0.43})
    assert said == [
        "a has 27,398 components of ET; patients rarely have more than 60 metastases",
        "43% of the box around the brain of b is labelled; a brain fills about half of it",
    ]


def test_many_cases_are_counted():
    (said,) = implausible({name: sizes(1, 201) for name in "abcde"}, dict.fromkeys("abcde", 0.0))
    assert said.startswith(
        "a has 201 components of WT, b has 201 components of WT, c has 201 components of WT and 2 more"
    )


def test_nothing_at_all():
    assert implausible({"a": sizes(0, 0), "b": sizes(0, 0)}, {"a": 0.0, "b": 0.0}) == ["no lesion in any of 2 cases"]
