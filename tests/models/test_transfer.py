import pytest
import torch
from torch import nn

from brats_lightning.models import ResEncUNet, UNet
from brats_lightning.models.transfer import Transfer, Weights, channel_axes, transfer


def network(inputs=2, outputs=3, kind=UNet, **settings):
    return kind(inputs, outputs, (4, 8, 8), **settings)


def axes_of(inputs=2, outputs=3, kind=UNet, **settings):
    made = network(inputs, outputs, kind, **settings)
    return (
        channel_axes(made, network(inputs + 1, outputs, kind, **settings), inputs),
        channel_axes(made, network(inputs, outputs + 1, kind, **settings), outputs),
    )


def moved(old_names, new_names, kind=UNet, **settings):
    """(old network, new one before, after, what was done) for ((inputs), (outputs)) of both."""
    torch.manual_seed(0)
    old = network(*map(len, old_names), kind, **settings)
    new = network(*map(len, new_names), kind, **settings)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    axes = axes_of(*map(len, new_names), kind, **settings)
    done = transfer(new, Weights(old.state_dict(), *old_names), *new_names, axes)
    return old.state_dict(), before, new.state_dict(), done


def test_axes_are_those_of_the_first_and_last_layers():
    inputs, outputs = axes_of()
    assert inputs == {"encoder.0.0.conv1.weight": 1}
    assert outputs == {f"heads.{n}.{what}": 0 for n in (0, 1) for what in ("weight", "bias")}
    # with as many channels as features, of which a shape alone could not tell
    assert axes_of(4, 4, ResEncUNet)[0] == {"encoder.0.0.conv1.weight": 1}
    # a transposed convolution has its outputs second
    assert axes_of(stem=2)[1]["heads.0.weight"] == 1


def test_the_same_channels_are_loaded_as_they_are():
    names = (("t1c", "t2f"), ("background", "netc", "et"))
    old, _, new, done = moved(names, names)
    assert done == Transfer(loaded=list(new))
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())


@pytest.mark.parametrize("kind", [UNet, ResEncUNet])
def test_sequences_by_name(kind):
    classes = ("background", "netc", "et")
    old, _, new, done = moved((("t1c", "t2f"), classes), (("t2f", "t1n", "t1c"), classes), kind)
    first = "encoder.0.0.conv1.weight"
    assert done.inputs == done.adapted == [first]
    assert not done.left + done.unused + done.outputs
    t1c, t2f = old[first].unbind(1)
    torch.testing.assert_close(new[first], torch.stack([t2f, (t1c + t2f) / 2, t1c], 1))


@pytest.mark.parametrize("settings", [{}, {"stem": 2}])
def test_classes_by_name(settings):
    modalities = ("t1c", "t2f")
    old, before, new, done = moved(
        (modalities, ("background", "netc", "et")), (modalities, ("et", "tc", "background", "rc")), **settings
    )
    assert done.outputs == ["heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"]
    assert not done.left + done.unused + done.inputs
    for name in done.outputs:
        axis = 1 if settings and name == "heads.0.weight" else 0
        o, b, n = (list(state[name].unbind(axis)) for state in (old, before, new))
        assert all(torch.equal(x, y) for x, y in zip(n, [o[2], b[1], o[0], b[3]], strict=True))


def test_the_same_number_of_other_channels_is_not_the_same():
    names = ("t1c", "t2f"), ("background", "netc", "et")
    old, before, new, done = moved(names, (("t2f", "t1c"), ("wt", "tc", "rc")))
    assert done.inputs == ["encoder.0.0.conv1.weight"]
    assert torch.equal(new["encoder.0.0.conv1.weight"], old["encoder.0.0.conv1.weight"].flip(1))
    assert done.left == ["heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"]  # no name in common
    assert torch.equal(new["heads.0.weight"], before["heads.0.weight"])


def test_what_does_not_fit_is_left_and_named():
    old, new = UNet(2, 3, (4, 8, 8), decoder_blocks=2), UNet(2, 3, (4, 8, 16))
    names = ("a", "b"), ("c", "d", "e")
    axes = channel_axes(new, UNet(3, 3, (4, 8, 16)), 2), channel_axes(new, UNet(2, 4, (4, 8, 16)), 3)
    done = transfer(new, Weights(old.state_dict(), *names), *names, axes)
    assert set(done.loaded) | set(done.left) == set(new.state_dict())
    assert {name.rsplit(".", 2)[0] for name in done.left} == {"encoder.2.0", "decoder.1"}
    assert {name.rsplit(".", 2)[0] for name in done.unused} == {"decoder.0.blocks.1", "decoder.1.blocks.1"}


def test_a_single_layer_is_adapted_along_both():
    def make(inputs, outputs):
        return nn.Sequential(nn.Conv3d(inputs, outputs, 1))

    old, new = make(2, 2), make(1, 3)
    axes = channel_axes(new, make(2, 3), 1), channel_axes(new, make(1, 4), 3)
    before = new[0].bias[1].item()
    done = transfer(new, Weights(old.state_dict(), ("t1c", "t2f"), ("wt", "et")), ("t2f",), ("et", "rc", "wt"), axes)
    assert done.adapted == ["0.weight", "0.bias"]
    assert new[0].weight[[0, 2], 0].flatten().tolist() == old[0].weight[[1, 0], 1].flatten().tolist()
    assert new[0].bias.tolist() == pytest.approx([old[0].bias[1].item(), before, old[0].bias[0].item()])
