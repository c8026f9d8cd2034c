"""Plain flags: argparse, whose complaints are one line like every other."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Raises a ValueError where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see: {self.prog} --help)")


def printable(text: str) -> str:
    """A text as a terminal may have it: signs that steer it, and what is no unicode, are written out."""
    return "".join(it if it.isprintable() or it == "\t" else it.encode("unicode_escape").decode() for it in text)


def short(number: float) -> str:
    """A large number in a few characters."""
    for size, letter in ((1e12, "T"), (1e9, "G")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return f"{number / 1e6:.1f} M"


def there(given: str, test: Callable[[Path], bool]) -> bool:
    """Whether an argument is a path that passes a test such as `Path.is_file`; what is too long for one does not."""
    try:
        return bool(given) and test(Path(given))
    except OSError:  # longer than a path may be: a text
        return False
