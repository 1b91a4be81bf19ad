"""Reading text: files, compressed or not, directories, standard input."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import itertools
import lzma
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import MissingPackage, UserError

STDIN = "-"
BLOCK = 1 << 18  # bytes read at a time; compressed ones become many times as many


def read_text(path: str | Path) -> str:
    """The UTF-8 text of a file, a directory or, for "-", standard input, CRLF as "\\n".

    What gzip, bzip2, xz or zstd has compressed is decompressed, told by its first bytes whatever
    its name; zstd needs Python 3.14 or the package zstandard. A directory is all files in it and
    in its folders, in the order of their paths, without those with a name, or in a folder with a
    name, that begins with a dot; each closes its last line. Raises UserError for what is missing,
    empty, damaged or not UTF-8.
    """
    return "".join(pieces(path))


def pieces(path: str | Path) -> Iterator[str]:
    """The text of `read_text`, piece by piece."""
    blank = True
    folder = Path(path).is_dir() and not is_stdin(path)
    for piece in _directory(Path(path)) if folder else _file(path):
        blank = blank and not piece.strip()
        yield piece
    if blank and is_stdin(path):
        raise UserError("standard input is empty: give text, and - for one text alone")
    if blank:
        raise UserError(f"{path} is empty: give a file with text")


def is_stdin(path: str | Path) -> bool:
    return str(path) == STDIN


def _directory(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if hidden or not path.is_file():
            continue
        piece = "\n"
        for piece in _file(path):
            yield piece
        if not piece.endswith("\n"):
            yield "\n"


def _file(path: str | Path) -> Iterator[str]:
    """The text of one file, in pieces that are not empty."""
    name = "standard input" if is_stdin(path) else str(path)
    try:
        with contextlib.ExitStack() as stack:
            file = sys.stdin.buffer if is_stdin(path) else stack.enter_context(open(path, "rb"))
            yield from _decoded(name, _decompressed(name, file))
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error


def _decoded(name: str, blocks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, kept, mark = 0, "", "\ufeff"  # a byte order mark is no text
    for block in itertools.chain(blocks, [b""]):
        waiting = len(decoder.getstate()[0])
        try:
            text = kept + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} is not UTF-8 text (byte {done - waiting + error.start}): "
                "convert it, e.g. with iconv"
            ) from error
        done += len(block)
        if text:
            text, mark = text.removeprefix(mark), ""
        # The last "\r" may be half of a line's end.
        kept = "\r" if block and text.endswith("\r") else ""
        text = text[: len(text) - len(kept)].replace("\r\n", "\n")
        if text:
            yield text


def _gzip():
    return zlib.decompressobj(wbits=31)


def _zstd():
    try:
        from compression.zstd import ZstdDecompressor  # Python 3.14
    except ImportError:
        try:
            import zstandard
        except ImportError:
            raise MissingPackage(
                "zstd needs Python 3.14 or the package zstandard: pip install zstandard, or "
                "decompress the text yourself"
            ) from None
        return zstandard.ZstdDecompressor().decompressobj()
    return ZstdDecompressor()


# By their first bytes; no UTF-8 text begins so.
_FORMATS = {
    rb"\x1f\x8b": ("gzip", _gzip),
    rb"BZh[1-9]1AY&SY": ("bzip2", bz2.BZ2Decompressor),
    rb"\xfd7zXZ\x00": ("xz", lzma.LZMADecompressor),
    rb"\x28\xb5\x2f\xfd": ("zstd", _zstd),
}


def _decompressed(name: str, file: BinaryIO) -> Iterator[bytes]:
    block = file.read(BLOCK)
    found = [format for magic, format in _FORMATS.items() if re.match(magic, block)]
    if not found:
        while block:
            yield block
            block = file.read(BLOCK)
        return
    [(kind, decompressor)] = found
    member = None  # several may follow one another, with zeros between
    while block or (block := file.read(BLOCK)):
        if member is None and not (block := block.lstrip(b"\0")):
            continue
        try:
            member = member or decompressor()
            data = member.decompress(block)
        except MissingPackage as error:
            raise UserError(f"cannot read {name}: {error}") from error
        except Exception as error:  # each module has exceptions of its own
            raise UserError(f"{name} is damaged {kind} data ({error})") from error
        if data:
            yield data
        block = b""
        if member.eof:
            block, member = member.unused_data, None
    if member is not None:
        raise UserError(f"{name} is cut off: its {kind} data has no end")
