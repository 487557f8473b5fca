"""The presets of the residual encoder are what nnU-Net's planner chooses for the median scan of BraTS-METS."""

import math
import os
import tempfile
import warnings

import numpy as np
import pytest

for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):  # read when nnU-Net is imported
    os.environ.setdefault(variable, tempfile.gettempdir())
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("nnunetv2")
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as planners,
    )

SHAPE, SPACING, CASES = (142, 215, 206), (1.0, 0.898, 0.859), 1296  # of the training cases, cropped to the brain


def planner(reference_3d, gigabytes):
    """A planner with the attributes that its constructor takes from the files of a data set, or sets."""
    made = object.__new__(planners.ResEncUNetPlanner)
    made.UNet_class = planners.ResidualEncoderUNet
    made.dataset_json = {"channel_names": dict.fromkeys("0123", "MRI"), "labels": dict.fromkeys("01234", 0)}
    made.UNet_base_num_features, made.UNet_max_features_3d, made.UNet_featuremap_min_edge_length = 32, 320, 4
    made.UNet_reference_val_corresp_bs_3d = made.UNet_min_batch_size = 2
    made.UNet_blocks_per_stage_encoder, made.UNet_blocks_per_stage_decoder = (1, 3, 4, *[6] * 10), (1,) * 12
    made.UNet_reference_val_3d = reference_3d
    made.UNet_vram_target_GB = made.UNet_reference_val_corresp_GB = gigabytes
    made.max_dataset_covered, made.preprocessor_name = 1, "DefaultPreprocessor"
    made.determine_normalization_scheme_and_whether_mask_is_used_for_norm = lambda: ([], [])
    return made


# The references are those of nnUNetPlannerResEncM and nnUNetPlannerResEncL.
@pytest.mark.parametrize(("preset", "reference", "gigabytes"), [("m", 680_000_000, 8), ("l", 2_100_000_000, 24)])
def test_patch_batch_and_network_are_the_planner_s(composed, preset, reference, gigabytes):
    voxels = float(CASES * math.prod(SHAPE))
    plan = planner(reference, gigabytes).get_plans_for_configuration(
        np.array(SPACING), np.array(SHAPE), "case", voxels, {}
    )
    network = plan["architecture"]["arch_kwargs"]
    cfg = composed(f"experiment=resenc_{preset}", plain=True)
    assert [int(n) for n in plan["patch_size"]] == list(cfg.sampling.size) == list(cfg.inference.window)
    assert plan["batch_size"] == cfg.data.batch_size
    assert list(network["features_per_stage"]) == list(cfg.model.widths)
    assert list(network["n_blocks_per_stage"]) == list(cfg.model.blocks)
    assert set(network["n_conv_per_stage_decoder"]) == {cfg.model.decoder_blocks}
    strides = cfg.model.strides if cfg.model.strides != 2 else [2] * 5
    ours = [[n] * 3 if isinstance(n, int) else list(n) for n in strides]
    assert [[int(n) for n in stride] for stride in network["strides"]] == [[1, 1, 1], *ours]
    assert {tuple(kernel) for kernel in network["kernel_sizes"]} == {(cfg.model.kernel_sizes,) * 3}
