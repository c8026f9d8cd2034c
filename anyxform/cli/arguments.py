"""Plain flags: argparse, whose complaints are one line like every other."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Raises a ValueError where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see: {self.prog} --help)")
