"""The command `anyxform`: dispatch, and errors as one line. A command's module is imported only when it is used."""

import os
import sys
from importlib import import_module

from anyxform import __version__
from anyxform.cli.arguments import printable
from anyxform.field import did_you_mean

COMMANDS = {  # name: (module:function, what it is for)
    "run": ("run:main", "convert files or texts: anyxform run cat.png --to text:fr"),
    "edit": ("edit:main", "make a part anew, keep the rest: anyxform edit fish.png --redo 0,0,64,32"),
    "train": ("train:main", "train a model: anyxform train experiment=starter train.steps=1000"),
    "eval": ("eval:main", "judge a model in every direction: anyxform eval runs/starter split=test"),
    "tokenizer": (
        "tokenizer:main",
        "train a modality's tokenizer: anyxform tokenizer modality=image data=starter",
    ),
    "data": ("data:main", "build, index, check or show data: anyxform data build photos data/photos"),
    "demo": ("demo:main", "train a small model from scratch and show what it does: anyxform demo --out demo"),
    "card": ("card:main", "write a model card from what was recorded: anyxform card runs/mine"),
    "plan": ("plan:main", "which size of model is right, by runs: anyxform plan --fit runs/a runs/b runs/c"),
    "export": ("export:main", "write a checkpoint, small, or graphs (ONNX): anyxform export runs/mine mine"),
    "modalities": ("info:modalities", "list the installed modalities"),
    "doctor": ("info:doctor", "versions, devices, codecs, what is missing and how to get it"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 where some inputs failed, 2 for the user's errors."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"anyxform {__version__}")
        return 0
    try:
        name, *rest = arguments
        if name not in COMMANDS:
            raise ValueError(f"no command is called {name!r}: {did_you_mean(name, list(COMMANDS))}")
        module, _, function = COMMANDS[name][0].partition(":")
        return int(getattr(import_module(f"anyxform.cli.{module}"), function)(rest))
    except (ValueError, OSError) as error:
        if os.environ.get("ANYXFORM_DEBUG"):
            raise
        print(f"anyxform: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("anyxform: interrupted", file=sys.stderr)
        return 130


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: anyxform COMMAND …",
            "",
            "One Transformer that converts anything into anything.",
            "",
            *lines,
            "",
            "`anyxform COMMAND --help` says more. ANYXFORM_DEBUG=1 shows tracebacks.",
        ]
    )
