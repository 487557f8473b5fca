"""Our network with the weights of the reference network: the same logits at all resolutions."""

import pytest
import torch

from brats_lightning.models import ResEncUNet, UNet
from brats_lightning.models.nnunet import from_nnunet

reference = pytest.importorskip("dynamic_network_architectures.architectures.unet")

SETTINGS = {"norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
SETTINGS |= {"nonlin": torch.nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True}
PRESET = {"widths": (32, 64, 128, 256, 320, 320), "blocks": (1, 3, 4, 6, 6, 6)}


def shaken(network):
    """Weights that leave nothing at a value which hides a mistake: zero biases, zero norms."""
    torch.manual_seed(0)
    network.apply(network.initialize)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.std().nan_to_num(1).clamp_min(0.5))
    return network


def largest_difference(ours, theirs, image):
    pairs = zip(ours.train()(image), theirs.train()(image), strict=True)
    differences = [(a - b).abs().max().item() / b.abs().max().item() for a, b in pairs]
    assert len(differences) == len(ours.heads)
    return max(differences)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strides", [[1, 2, 2, 2], [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]])
def test_small_residual_encoders(strides, bias):
    widths, blocks = (8, 16, 32, 32), (1, 3, 4, 2)
    kernels = [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    theirs = shaken(
        reference.ResidualEncoderUNet(
            *(4, 4, widths, torch.nn.Conv3d, kernels, strides, blocks, 3, [1, 2, 1]), conv_bias=bias, **SETTINGS
        )
    )
    ours = ResEncUNet(
        *(4, 3, widths),
        blocks=blocks,
        decoder_blocks=(1, 2, 1),
        kernel_sizes=kernels,
        strides=strides[1:],
        deep_supervision=2,
    )
    ours.load_state_dict(from_nnunet(theirs.state_dict(), 4, residual=True))
    assert largest_difference(ours, theirs, torch.randn(2, 4, 16, 32, 24)) < 1e-5


def preset():
    theirs = reference.ResidualEncoderUNet(
        *(4, 6, PRESET["widths"], torch.nn.Conv3d, 3, [1, 2, 2, 2, 2, 2], PRESET["blocks"], 4, 1),
        conv_bias=True,
        **SETTINGS,
    )
    return theirs, ResEncUNet(4, 4, **PRESET, deep_supervision=4)


def test_the_preset_in_double_precision():
    """Whatever the weights, all that differs is rounding."""
    theirs, ours = (network.double() for network in preset())
    shaken(theirs)
    ours.load_state_dict(from_nnunet(theirs.state_dict(), 6, residual=True))
    # Three slices at the deepest level: two are convolved in single precision on a CPU.
    assert largest_difference(ours, theirs, torch.randn(1, 4, 96, 32, 32, dtype=torch.float64)) < 1e-9


def test_logits_of_the_preset():
    torch.manual_seed(0)
    theirs, ours = preset()
    theirs.apply(theirs.initialize)
    for name, parameter in theirs.named_parameters():
        if "conv2.norm.weight" in name:
            torch.nn.init.ones_(parameter)  # residues that count
    ours.load_state_dict(from_nnunet(theirs.state_dict(), 6, residual=True))
    theirs.decoder.deep_supervision = False
    # In channels-last torch's batch norm (2.13, CPU), through which one sample goes, adds up all voxels one after the
    # other in single precision: of 96 × 64 × 64 the logits are then off by 5e-4.
    ours.to(memory_format=torch.contiguous_format)
    image = torch.randn(1, 4, 96, 64, 64)
    with torch.inference_mode():
        expected = theirs.eval()(image)
        difference = (ours.eval()(image) - expected).abs().max().item()
    print(f"largest difference of logits {difference:.1e}, of {expected.abs().max():.1f}")
    assert difference < 1e-4


def test_the_plain_network():
    widths = (8, 16, 32)
    theirs = shaken(
        reference.PlainConvUNet(
            *(4, 3, widths, torch.nn.Conv3d, 3, [1, 2, 2], [2, 4, 2], 3, [2, 4]), conv_bias=True, **SETTINGS
        )
    )
    ours = UNet(4, 3, widths, blocks=(1, 2, 1), decoder_blocks=(2, 1), deep_supervision=1)
    ours.load_state_dict(from_nnunet(theirs.state_dict(), 3, residual=False))
    assert largest_difference(ours, theirs, torch.randn(2, 4, 16, 16, 24)) < 1e-5


def test_initialisation_is_the_reference_s():
    """He's, and residues that start at nothing."""
    torch.manual_seed(0)
    theirs = reference.ResidualEncoderUNet(
        *(4, 3, (16, 32, 64), torch.nn.Conv3d, 3, [1, 2, 2], (1, 2, 2), 3, 1), conv_bias=True, **SETTINGS
    )
    theirs.apply(theirs.initialize)
    converted = from_nnunet(theirs.state_dict(), 3, residual=True)
    for name, weight in ResEncUNet(4, 3, (16, 32, 64), blocks=(1, 2, 2)).state_dict().items():
        if "norm" in name:
            torch.testing.assert_close(weight, converted[name])
        elif ".conv" in name:
            assert weight.std().item() == pytest.approx(converted[name].std().item(), rel=0.15)
