"""The weights in an ONNX file, and the names of the nodes that read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perdure.errors import FetchError


@dataclass(frozen=True)
class Graph:
    """The weights of an ONNX file.

    Attributes
    ----------
    tensors
        All tensors, by name.
    inputs
        For each node, the names of the tensors that it reads.
    """

    tensors: Mapping[str, np.ndarray]
    inputs: Mapping[str, list[str]]


def read(file: Path, model: str) -> Graph:
    """Read the weights from an ONNX file.

    `model` is the name of the model, for error messages.

    Raises
    ------
    FetchError
        The package `onnx` is not installed.
    """
    try:
        import onnx  # needed only here, once per machine: it is an optional dependency
    except ImportError as error:
        raise FetchError(
            f"`{model}` is read from an ONNX file, but the package `onnx` is not installed. "
            "Install `perdure[demo]`, or `onnx`."
        ) from error
    graph = onnx.load(str(file)).graph
    tensors: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        tensors[tensor.name] = onnx.numpy_helper.to_array(tensor)
    inputs: dict[str, list[str]] = {}
    for node in graph.node:
        weights = [name for name in node.input if name in tensors]
        if weights:
            inputs[node.name] = weights
    return Graph(tensors, inputs)
