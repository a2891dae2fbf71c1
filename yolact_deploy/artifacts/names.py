"""Names of ONNX nodes: the path of the PyTorch module they come from, then the operator, as in "fpn.lat_layers.0/Conv"."""

from __future__ import annotations


def module_of(node_name: str) -> str:
    """The module that a node comes from: "fpn.lat_layers.0" of "fpn.lat_layers.0/Conv", "" where the name has none.

    Paths with slashes ("/fpn/lat_layers.0/Conv", as PyTorch's older exporter writes them) become dotted ones.
    """
    return node_name.strip("/").rpartition("/")[0].replace("/", ".")
