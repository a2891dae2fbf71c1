from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from exporters.checkpoints.configs import published_spec
from exporters.network.yolact import Yolact
from tests import goldens
from yolact_deploy.errors import SpecError
from yolact_deploy.spec import BackboneSpec, FpnSpec, HeadSpec, ModelSpec, PriorsSpec, ProtonetSpec


def _on_meta(spec: ModelSpec) -> Yolact:
    with torch.device("meta"):
        return Yolact(spec)


@pytest.mark.parametrize("config", goldens.CONFIGS)
def test_state_dict_has_the_names_shapes_and_order_of_the_original(config: str) -> None:
    state = _on_meta(published_spec(config)).state_dict()
    assert [(name, tuple(t.shape)) for name, t in state.items()] == list(goldens.manifest_shapes(config).items())


@pytest.mark.parametrize("config", goldens.CONFIGS)
def test_output_shapes_are_those_of_the_original_and_of_the_spec(config: str) -> None:
    spec = published_spec(config)
    heads = _on_meta(spec).eval()(torch.zeros(1, 3, spec.input_size, spec.input_size, device="meta"))
    shapes = {name: tuple(tensor.shape) for name, tensor in heads._asdict().items()}
    recorded = goldens.manifest(config)["raw_outputs"]
    assert shapes == {
        name: tuple(recorded["mask" if name == "mask_coeff" else name])
        for name in ("loc", "conf", "mask_coeff", "proto")
    }
    assert {name: shape[1:] for name, shape in shapes.items()} == spec.output_shapes()


def test_heads_of_the_trained_shapes_checkpoint_match_the_original(shapes_model: Yolact) -> None:
    with np.load(goldens.GOLDEN / "shapes" / "raw_heads_val_public_1001.npz") as recorded:
        with torch.inference_mode():
            heads = shapes_model(torch.from_numpy(recorded["input"])[None])
        for tensor, name in zip(heads, ("loc", "conf_softmax", "coeff_tanh", "proto"), strict=True):
            np.testing.assert_allclose(tensor[0].numpy(), recorded[name], rtol=0, atol=1e-4)


def test_logits_are_the_softmax_left_out(shapes_model: Yolact) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 256, 256)).astype(np.float32))
    logits_model = Yolact(dataclasses.replace(shapes_model.spec, conf_activation="logits")).eval()
    logits_model.load_state_dict(shapes_model.state_dict())
    with torch.inference_mode():
        softmaxed, logits = shapes_model(image).conf, logits_model(image).conf
    assert not torch.allclose(softmaxed, logits)
    torch.testing.assert_close(torch.softmax(logits, dim=-1), softmaxed)


@pytest.mark.parametrize(
    ("backbone", "num_downsample"),
    [
        (BackboneSpec("resnet", (1, 2, 1, 1), (0, 1, 2, 3)), 1),
        (BackboneSpec("resnet", (2, 1), (1,)), 3),
        (BackboneSpec("darknet", (1, 1, 2), (1, 2)), 0),
    ],
)
def test_any_stages_and_selected_layers_give_the_shapes_of_the_spec(
    backbone: BackboneSpec, num_downsample: int
) -> None:
    levels = len(backbone.selected_layers) + num_downsample
    spec = ModelSpec(
        name="small",
        input_size=97,  # odd, so that every halving rounds
        backbone=backbone,
        class_names=("a", "b"),
        category_ids=(1, 2),
        priors=PriorsSpec(((8, 12),) * levels, ((1.0,),) * levels),
        fpn=FpnSpec(channels=8, num_downsample=num_downsample),
        protonet=ProtonetSpec(((8, 3), (None, -2), (None, -2), (4, 1)), src_level=levels - 1),
        head=HeadSpec(extra_layers=(), kernel_size=1),
    )
    heads = Yolact(spec).eval()(torch.zeros(2, 3, 97, 97))
    assert {name: tuple(t.shape) for name, t in heads._asdict().items()} == {
        name: (2, *shape) for name, shape in spec.output_shapes().items()
    }
    names = Yolact(spec).state_dict()
    assert "proto_net.0.weight" in names
    assert "proto_net.6.weight" in names  # two upsamplings take the indices 2 to 5
    assert not any("upfeature" in name for name in names)


def test_what_is_not_supported_is_refused_by_name() -> None:
    spec = dataclasses.replace(published_spec("yolact_resnet50"), fpn=FpnSpec(relu_downsample_layers=True))
    with pytest.raises(SpecError, match="relu_downsample_layers"):
        _on_meta(spec)
