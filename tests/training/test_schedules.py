import pytest
import torch

from brats_lightning.training.schedules import constant, polynomial, warmup_cosine


def rates(schedule, steps, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = schedule(optimizer, lambda step: step / steps, **options)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found, scheduler.get_last_lr()[0]


def test_cosine_rises_then_falls_to_its_end():
    found, end = rates(warmup_cosine, 20, warmup=0.2, final=0.1)
    assert found[:5] == pytest.approx([0.2, 0.65, 1.1, 1.55, 2.0])
    assert found[12] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half way down
    assert end == pytest.approx(0.2)


def test_cosine_without_warm_up_starts_at_the_peak():
    assert rates(warmup_cosine, 4, warmup=0.0)[0][0] == 2.0


def test_polynomial():
    found, end = rates(polynomial, 4, power=2.0)
    assert found == pytest.approx([2.0, 2 * 0.75**2, 0.5, 2 * 0.25**2])
    assert end == 0


def test_constant():
    assert set(rates(constant, 3)[0]) == {2.0}


def test_a_run_that_only_warms_up():
    found, end = rates(warmup_cosine, 4, warmup=1, final=0)
    assert [*found, end] == pytest.approx([0, 0.5, 1.0, 1.5, 2.0])


@pytest.mark.parametrize(
    ("schedule", "option"), [(warmup_cosine, "warmup"), (warmup_cosine, "final"), (polynomial, "power")]
)
def test_shares_that_are_none(schedule, option):
    with pytest.raises(ValueError, match=rf"scheduler\.{option} .* got -1"):
        rates(schedule, 4, **{option: -1})
