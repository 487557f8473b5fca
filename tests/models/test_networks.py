import pickle
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional

from brats_lightning.models import AttentionUNet, NetworkSettingError, ResEncUNet, ResUNet, UNet
from brats_lightning.models.blocks import AttentionGate

NETWORKS = [UNet, AttentionUNet, ResUNet, ResEncUNet]
CONF = Path(__file__).parents[2] / "conf"
# Without it torch convolves bfloat16 by a plain kernel, which hands on a layout of its own.
FAST_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_by_formula():
    c, k, w0, w1, w2 = 2, 3, 4, 8, 16
    widths = (w0, w1, w2)

    def block(a, b):  # two 3×3×3 convolutions without bias, two norms with scale and shift
        return 27 * (a * b + b * b) + 4 * b

    encoder = block(c, w0) + block(w0, w1) + block(w1, w2)
    up = 8 * (w1 * w0 + w2 * w1) + w0 + w1
    decoder = block(2 * w0, w0) + block(2 * w1, w1)
    heads = (w0 + 1) * k + (w1 + 1) * k
    plain = encoder + up + decoder + heads
    assert parameters(UNet(c, k, widths)) == plain

    shortcuts = c * w0 + w0 * w1 + w1 * w2 + 2 * w0 * w0 + 2 * w1 * w1
    assert parameters(ResUNet(c, k, widths)) == plain + shortcuts

    def gate(fine, coarse):
        inner = fine // 2
        return 8 * fine * inner + (coarse + 1) * inner + inner + 1

    assert parameters(AttentionUNet(c, k, widths)) == plain + gate(w0, w1) + gate(w1, w2)


@pytest.mark.parametrize("network", [UNet, AttentionUNet, ResUNet])
def test_blocks_per_level(network):
    base, deeper = network(1, 2, (4, 8, 8)), network(1, 2, (4, 8, 8), blocks=(1, 3, 2), decoder_blocks=(2, 1))
    block = 27 * 2 * 64 + 4 * 8  # one more block of a level has as many channels in as out, thus no shortcut
    first = 27 * 2 * 16 + 4 * 4
    assert parameters(deeper) - parameters(base) == 3 * block + first


def test_residual_encoder_with_a_plain_decoder():
    c, k, w0, w1, w2 = 2, 3, 4, 8, 16

    def convolution(a, b, kernel=27):  # with a norm
        return kernel * a * b + 2 * b

    def block(a, b):
        return convolution(a, b) + convolution(b, b) + (convolution(a, b, 1) if a != b else 0)

    encoder = convolution(c, w0) + block(w0, w0) + block(w0, w1) + block(w1, w1) + block(w1, w2)
    up = 8 * (w1 * w0 + w2 * w1) + w0 + w1
    decoder = convolution(2 * w0, w0) + convolution(2 * w1, w1) + convolution(w1, w1)
    heads = (w0 + 1) * k + (w1 + 1) * k
    model = ResEncUNet(c, k, (w0, w1, w2), blocks=(1, 2, 1), decoder_blocks=(1, 2))
    assert parameters(model) == encoder + up + decoder + heads


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(16, 16, 16), (17, 13, 9), (5, 3, 1), (1, 1, 1)])
@pytest.mark.parametrize(
    "settings", [{}, {"upsampling": "trilinear", "norm": "group", "strides": [[1, 2, 2], 2, 3]}, {"stem": [1, 2, 3]}]
)
def test_any_size_comes_out_as_it_went_in(network, size, settings):
    if size == (1, 1, 1) and settings:
        size = (1, 1, 2)
    out = network(2, 3, (4, 4, 8, 8), **settings)(torch.randn(2, 2, *size))
    assert out.shape == (2, 3, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_deep_supervision_lists_resolutions_in_training_only(network):
    model = network(1, 3, (4, 4, 8, 8), deep_supervision=2, strides=[[1, 2, 2], 2, 2])
    x = torch.randn(1, 1, 7, 8, 9)
    out = model(x)
    assert [tuple(level.shape[2:]) for level in out] == [(7, 8, 9), (7, 4, 5), (4, 2, 3)]
    torch.testing.assert_close(model.eval()(x), out[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_a_stem_halves_every_level_but_the_result(network):
    model = network(2, 3, (4, 8, 8), stem=2, deep_supervision=1)
    sizes = []
    model.encoder[0].register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    full, half = model(torch.randn(1, 2, 9, 8, 7))
    assert sizes == [(4, 5, 4, 4)]
    assert full.shape == (1, 3, 9, 8, 7)
    assert half.shape == (1, 3, 3, 2, 2)
    # each of the 2³ voxels under one of level 0 has weights of its own
    assert model.heads[0].weight.shape == (4, 3, 2, 2, 2)


@pytest.mark.parametrize("network", NETWORKS)
def test_checkpoint_loads_whatever_the_supervision(network, tmp_path):
    settings = {"in_channels": 1, "out_channels": 2, "widths": (4, 4, 4, 4)}
    with_heads, without = network(**settings, deep_supervision=2), network(**settings)
    torch.save(with_heads.state_dict(), tmp_path / "state.pt")
    without.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    x = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(without(x), with_heads.eval()(x))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("heads", [0, 1, 2])
def test_every_trainable_parameter_gets_a_gradient(network, heads):
    model = network(1, 2, (4, 4, 4, 4), deep_supervision=heads)
    out = model(torch.randn(1, 1, 8, 8, 8))
    sum(level.square().sum() for level in ([out] if heads == 0 else out)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert sum(not p.requires_grad for p in model.parameters()) == 2 * (2 - heads)


@pytest.mark.parametrize("network", NETWORKS)
def test_overfits_one_sample(network):
    torch.manual_seed(0)
    target = torch.zeros(1, 9, 10, 11, dtype=torch.long)
    target[0, 2:5, 3:6, 4:8] = 1
    target[0, 3, 4, 5:7] = 2
    image = functional.one_hot(target).movedim(-1, 1)[:, 1:].float() + 0.3 * torch.randn(1, 2, 9, 10, 11)
    model = network(2, 3, (8, 8, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = functional.cross_entropy(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_last_and_bfloat16(network):
    torch.manual_seed(0)
    model = network(2, 3, (8, 16, 16), deep_supervision=1)
    x = torch.randn(2, 2, 9, 8, 10)
    expected = model.eval()(x)
    model.to(memory_format=torch.channels_last_3d)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        levels = model.train()(x)
    assert all(level.dtype == torch.bfloat16 for level in levels)
    assert levels[0].is_contiguous(memory_format=torch.channels_last_3d) or not FAST_BFLOAT16
    assert (levels[0].float() - expected).square().mean() < 0.01 * expected.square().mean()


@pytest.mark.skipif(not FAST_BFLOAT16, reason="the layout is up to the CPU's kernels")
@pytest.mark.parametrize("network", NETWORKS)
def test_features_stay_channels_last(network):
    """Every module hands on the layout it gets: a copy to another layout costs as much as a norm."""
    model = network(2, 3, (8, 16, 16)).to(memory_format=torch.channels_last_3d)
    strayed = []

    def check(module, inputs, output):
        if output.shape[1] > 1 and not output.is_contiguous(memory_format=torch.channels_last_3d):
            strayed.append(module)

    for module in model.modules():
        if not isinstance(module, nn.ModuleList):
            module.register_forward_hook(check)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 2, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d))
    assert not strayed


@pytest.mark.parametrize("network", NETWORKS)
def test_pickle(network):
    model = network(1, 2, (4, 4), dropout=[0.1, 0.2]).eval()
    x = torch.randn(1, 1, 5, 5, 5)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), model(x))


def test_closed_gates_leave_nothing_of_the_skips():
    model = AttentionUNet(1, 2, (4, 4)).eval()
    gate = model.decoder[0].skip
    assert isinstance(gate, AttentionGate)
    nn.init.constant_(gate.psi.bias, -200)
    skips = []
    model.decoder[0].blocks.register_forward_pre_hook(lambda module, inputs: skips.append(inputs[0][:, :4]))
    model(torch.randn(1, 1, 6, 6, 6))
    assert not skips[0].any()


def test_gates_start_open():
    model = AttentionUNet(1, 2, (16, 16, 16))
    torch.testing.assert_close(model.decoder[1].skip.psi.bias, torch.tensor([2.0]))


def test_he_initialisation():
    torch.manual_seed(0)
    model = UNet(4, 3, (32, 64))
    weight = model.encoder[1][0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (27 * 64)) ** 0.5, rel=0.02)
    up = model.decoder[0].up
    assert up.weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert not up.bias.any()
    # one voxel through the transposed convolution keeps its variance
    assert up(torch.randn(8, 64, 4, 4, 4)).std().item() == pytest.approx(1, rel=0.1)


def test_receptive_field_is_local_without_the_norm():
    """One 3×3×3 block at full resolution sees two voxels each way; the deeper level adds what its stride reaches."""
    model = UNet(1, 2, (4, 4), activation="relu").double().eval()
    for module in model.modules():
        for name, _ in list(module.named_children()):
            if name.startswith("norm"):
                setattr(module, name, nn.Identity())
    x = torch.randn(1, 1, 33, 33, 33, dtype=torch.float64, requires_grad=True)
    model(x)[0, 0, 16, 16, 16].backward()
    seen = x.grad[0, 0].abs().sum((1, 2)).nonzero().flatten()
    # decoder block ±2, up-sampling to the level below, its block: 1·2 + 1 at stride 2, encoder block ±2
    assert 16 - 11 <= seen.min() < 16 - 4
    assert 16 + 4 < seen.max() <= 16 + 11


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"widths": (8,)}, "at least two widths"),
        ({"widths": (8, 0)}, "all positive"),
        ({"in_channels": 0}, "in_channels 0"),
        ({"deep_supervision": 2}, "0 to 1"),
        ({"deep_supervision": -1}, "0 to 1"),
        ({"strides": (1, 2, 2)}, "one per step down, got 3"),
        ({"strides": 0}, "positive integer"),
        ({"kernel_sizes": 2}, "odd"),
        ({"dropout": 1.0}, "below 1"),
        ({"dropout": [0.1, 0.1]}, "dropout must be one value or 3"),
        ({"blocks": 0}, "at least one block"),
        ({"decoder_blocks": [1, 1, 1]}, "decoder_blocks must be one value or 2"),
        ({"norm": "layer"}, "instance, group, batch"),
        ({"upsampling": "nearest"}, "transposed, trilinear"),
    ],
)
def test_settings_no_network_can_be_built_from(settings, words):
    with pytest.raises(NetworkSettingError, match=words):
        UNet(**{"in_channels": 1, "out_channels": 2, "widths": (4, 4, 4)} | settings)


NAMED = [("unet", UNet), ("attention_unet", AttentionUNet), ("resunet", ResUNet), ("resenc", ResEncUNet)]


def configured(*overrides):
    with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        config = compose(overrides=list(overrides))
    return instantiate(OmegaConf.merge({"data": {"in_channels": 4, "out_channels": 4}}, config).model)


@pytest.mark.parametrize(("name", "network"), NAMED)
def test_config_has_every_setting_and_its_default(name, network):
    model = configured(f"+model={name}")
    assert type(model) is network
    default = network(4, 4)
    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in default.named_parameters()]
    assert repr(model) == repr(default)
    pickle.dumps(model)


@pytest.mark.parametrize(("name", "network"), NAMED)
def test_sizes_are_presets_of_every_network(name, network):
    with torch.device("meta"):
        base, large = (configured(f"+model={name}", f"model/size={size}") for size in ("base", "large"))
    assert type(base) is network
    assert [level[0].conv1.out_channels for level in base.encoder] == [32, 64, 128, 256, 320, 320]
    first = 1 if network.first_block else 0
    assert [len(level) for level in base.encoder] == [1 + first, *[1] * 5]
    assert [len(level) for level in large.encoder] == [1 + first, 3, 4, 6, 6, 6]


def test_config_of_an_outside_network():
    pytest.importorskip("monai")
    config = OmegaConf.create(
        {"data": {"in_channels": 2, "out_channels": 3}, "model": OmegaConf.load(CONF / "model/monai_segresnet.yaml")}
    )
    assert instantiate(config.model).eval()(torch.randn(1, 2, 8, 8, 16)).shape == (1, 3, 8, 8, 16)
