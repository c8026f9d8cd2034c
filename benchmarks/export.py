"""How far graphs are from the model: four directions of a checkpoint in both formats, on held-out samples.

    python -m benchmarks.export [--items 8] [--checkpoint starter] [--format onnx torch]

Needs the extra `onnx`. Each is exported as `anyxform export` does it, which compares the codes of every sample and the
logits behind them with the model's where nothing is left to chance, and stops where they differ. The folders are
thrown away. Prints a table in Markdown.
"""

import argparse
import tempfile
from pathlib import Path

from anyxform.checkpoint import read_json
from anyxform.cli import main as anyxform
from anyxform.graph.export import META

FIELD = "text:*=json.text.*"
DIRECTIONS = (
    ("image", "text:en", "emoji"),
    ("text:en", "image:noto", "emoji"),
    ("audio", "text:en", "prompts"),
    ("text:en", "audio:en-phone", "prompts"),
)
"""`--from`, `--to` and of which dataset's test split the samples are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--checkpoint", default="starter")
    parser.add_argument("--format", nargs="+", choices=("onnx", "torch"), default=("onnx", "torch"))
    options = parser.parse_args()
    lines = ["| `--from` | `--to` | `--on` | `--format` | items | codes | logits within | size |", "|" + " --- |" * 8]
    for source, target, name in DIRECTIONS:
        shards = f"data/starter/{name}/test-*.tar"
        for form in options.format:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "graphs"
                words = ["export", options.checkpoint, str(out), "--format", form, "--from", source, "--to", target]
                if code := anyxform([*words, "--on", shards, "--field", FIELD, "--items", str(options.items)]):
                    raise SystemExit(code)
                parity, size = read_json(out / META)["parity"], sum(it.stat().st_size for it in out.iterdir())
            lines.append(
                f"| `{source}` | `{target}` | `{shards}` | `{form}` | {parity['items']} | the same "
                f"| {parity['largest_difference']:.1e} | {size / 1e6:.1f} MB |"
            )
    print("", *lines, sep="\n")


if __name__ == "__main__":
    main()
