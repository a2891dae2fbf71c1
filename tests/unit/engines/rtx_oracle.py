"""What TensorRT-RTX itself makes of an ONNX: the judge of the linter's errors."""

from __future__ import annotations

from typing import Any

import onnx

from engines.messages import build_log


def refusal(model: onnx.ModelProto) -> str | None:
    """Why the parser or the builder refuses the model for sm86, or None for one that builds."""
    import tensorrt_rtx as trt

    logger = build_log(trt)
    with logger.collect() as log:
        builder, network, refused = _parse(trt, logger, model)
        if refused is not None:
            return refused
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        profile = builder.create_optimization_profile()
        shape = (1, 3, 32, 32)
        profile.set_shape("image", shape, shape, shape)
        config.add_optimization_profile(profile)
        if builder.build_serialized_network(network, config) is not None:
            return None
        return " ".join(record.text for record in log if record.is_error) or "no reason given"


def quantize_types(model: onnx.ModelProto) -> dict[str, str]:
    """QuantizeLinear node -> the type that TensorRT-RTX gives its output."""
    import tensorrt_rtx as trt

    logger = build_log(trt)
    with logger.collect():
        _, network, refused = _parse(trt, logger, model)
    if refused is not None:
        raise AssertionError(refused)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return {layer.name: layer.get_output(0).dtype.name for layer in layers if layer.type == trt.LayerType.QUANTIZE}


def _parse(trt: Any, logger: Any, model: onnx.ModelProto) -> tuple[Any, Any, str | None]:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if parser.parse(model.SerializeToString()):
        return builder, network, None
    return builder, network, parser.get_error(0).desc() or "no reason given"
