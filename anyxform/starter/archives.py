"""Reads the packages' files without installing them: .deb is an ar archive with a tar inside, .tgz a tar."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every regular file of a package as (path inside without a leading ./, bytes)."""
    data = _deb_data(path) if path.suffix == ".deb" else path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            if member.isfile():
                yield member.name.removeprefix("./"), tar.extractfile(member).read()  # type: ignore[union-attr]


def _deb_data(path: Path) -> bytes:
    data, position = path.read_bytes(), len("!<arch>\n")
    while position < len(data):
        name, size = data[position : position + 16].decode().strip(), int(data[position + 48 : position + 58])
        position += 60
        if name.startswith("data.tar"):
            return data[position : position + size]
        position += size + size % 2  # members start at even offsets
    raise ValueError(f"{path} holds no data.tar: it is not a whole Debian package, remove it and build again")
