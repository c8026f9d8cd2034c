"""Graphs on disk, in the formats that there are: written from a module, and opened as a function of numpy arrays."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import CO_VARARGS
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import ExportedProgram

Graph = Callable[..., list[np.ndarray]]
"""Arrays in the order of the graph's inputs to those of its outputs."""
LARGE = 1_500_000_000
"""Bytes of weights from which on an ONNX graph, whose file ends at 2 GB, has them in a file beside it."""
ONNX = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Format:
    """How graphs of a format are written (to a path, names of inputs and of outputs) and opened."""

    ending: str
    write: Callable[[ExportedProgram, Path, Sequence[str], Sequence[str]], None]
    open: Callable[[Path], Graph]
    needs: Sequence[str] = ()

    def check(self) -> None:
        """ValueError: what it needs is not installed."""
        if missing := [name for name in self.needs if find_spec(name) is None]:
            raise ValueError(f"this needs {', '.join(missing)}: pip install 'anyxform[onnx]'")


def traced(module: nn.Module, inputs: Sequence[Tensor], sizes: Sequence[Any]) -> ExportedProgram:
    """A module as a graph; `sizes` says for each input which of its axes may have other sizes (`torch.export.Dim`).

    ValueError: what is computed holds for the sizes of these inputs only.
    """
    shapes = {"sources": tuple(sizes)} if module.forward.__code__.co_flags & CO_VARARGS else tuple(sizes)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(module.eval(), tuple(inputs), dynamic_shapes=shapes)
    except UserError as error:
        raise ValueError(
            f"{type(module).__name__} cannot be exported for inputs of other sizes, as where a modality takes "
            f"len(tensor) in place of tensor.shape[0]: {str(error).splitlines()[0]}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _write_torch(program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    with _quiet():
        torch.export.save(program, path)


def _open_torch(path: Path) -> Graph:
    module = torch.export.load(path).module()

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [tensor.numpy() for tensor in module(*map(torch.as_tensor, arrays))]

    return run


def _write_onnx(program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    with _quiet():
        torch.onnx.export(
            program,
            f=path,
            input_names=list(inputs),
            output_names=list(outputs),
            external_data=size > LARGE,
            dynamo=True,
            verbose=False,
        )


def _open_onnx(path: Path) -> Graph:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [it.name for it in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


FORMATS = {
    "torch": Format("pt2", _write_torch, _open_torch),
    "onnx": Format("onnx", _write_onnx, _open_onnx, ONNX),
}
