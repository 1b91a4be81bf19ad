"""Read text: files, also compressed ones, directories and standard input, at once or in parts."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import functools
import itertools
import lzma
import re
import shutil
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Protocol, TextIO

from .errors import MissingPackage, UserError
from .files import writing
from .storage import is_model

STDIN = "-"
BLOCK = 1 << 18  # the bytes that are read at a time; compressed bytes become many times as many
IN_MEMORY = 1 << 26  # characters; a longer text is read anew whenever it is needed
LONGEST_WORD = 1 << 24  # characters; a longer word may be cut
BLANKS = " \t\n\r\v\f"  # the characters that end a word
# The other characters at which `str.split` splits. Here they are parts of words.
_NO_BLANKS = re.compile("[\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_WORD = re.compile(f"[^{BLANKS}]+")


def words(text: str) -> list[str]:
    r"""Return the words of a text, which only the blanks of ASCII end, as in KenLM and SRILM.

    A no-break space or an ideographic space is a part of a word.

    Example:
        >>> words("10\xa0000 francs\n")
        ['10\xa0000', 'francs']
    """
    # `str.split` is twice as fast as the regular expression.
    return _WORD.findall(text) if _NO_BLANKS.search(text) else text.split()


def read_text(path: str | Path) -> str:
    r"""Read the UTF-8 text of a file, of a directory or, for "-", of standard input.

    A line may end with CRLF or "\r", which becomes "\n". A file that was compressed with gzip,
    bzip2, xz or zstd is decompressed. Its first bytes say so, and its name does not matter. zstd
    needs Python 3.14 or the package zstandard.

    A directory stands for all files in it and in its folders, in the order of their paths. Names
    that begin with a dot are left out. Folders of models are left out too, so that a model can be
    trained in the directory and resumed. A newline is added to a file that does not end with one.

    Raises:
        UserError: The text is missing, empty, damaged or not UTF-8.
    """
    return "".join(_reader(path)())


def open_text(path: str | Path) -> str | Text:
    """Return a text as `read_text` does, or a `Text` if it has more than IN_MEMORY characters.

    A `Text` is read anew whenever it is used, so the files must not change as long as it is used.
    What comes through a pipe is kept in a temporary file.
    """
    text, _ = open_split(path, 1.0)
    return text


def open_split(path: str | Path, fraction: float) -> tuple[str | Text, str]:
    """Return the first `fraction` of the characters of a text, and the rest of them.

    The text is read once. The first part is as `open_text` has it, the rest is in memory.
    """
    read = _reader(path)
    kept: deque[str] = deque()
    first = size = encoded = cut = 0  # characters before `kept`, characters and bytes so far
    for piece in read():
        kept.append(piece)
        size += len(piece)
        encoded += len(utf8(piece))
        cut = int(fraction * size)
        # The cut can only move on, so a piece that lies before it will not be needed.
        while size > IN_MEMORY and kept and first + len(kept[0]) <= cut:
            first += len(kept.popleft())
    if size <= IN_MEMORY:
        text = "".join(kept)
        return text[:cut], text[cut:]
    rest = "".join(kept)[cut - first :]
    return Text(read, 0, cut, encoded - len(utf8(rest))), rest


class Text:
    """A text that need not fit in memory: `pieces` reads it anew. A slice is also a `Text`."""

    def __init__(
        self,
        read: Callable[[], Iterator[str]],
        start: int,
        stop: int,
        encoded: int | None = None,
    ):
        """Make the text of the characters `start` to `stop` in the pieces that `read()` yields.

        `encoded` is the number of bytes of this text in UTF-8, if it is known.
        """
        self._read, self._start, self._stop, self._encoded = read, start, stop, encoded

    def __len__(self) -> int:
        """Return the number of characters."""
        return self._stop - self._start

    def __getitem__(self, part: slice) -> Text:
        start, stop, _ = part.indices(len(self))
        return Text(self._read, self._start + start, self._start + max(start, stop))

    def pieces(self) -> Iterator[str]:
        """Read the text: yield strings that are not empty."""
        at = 0
        for piece in self._read():
            if at >= self._stop:
                return
            if part := piece[max(self._start - at, 0) : self._stop - at]:
                yield part
            at += len(piece)

    def watched(self, on_piece: Callable[[str], None]) -> Text:
        """Return the same text, which calls `on_piece` with each piece when it is read."""

        def read() -> Iterator[str]:
            for piece in self.pieces():
                on_piece(piece)
                yield piece

        return Text(read, 0, len(self), self._encoded)

    def utf8_size(self) -> int:
        """Return the number of bytes in UTF-8. The text is read if this is not known."""
        if self._encoded is None:
            self._encoded = sum(len(utf8(piece)) for piece in self.pieces())
        return self._encoded


def parts(text: str | Text) -> Iterator[str]:
    """Yield the parts of a text. A part ends with a line or, in a long line, before a space."""
    if isinstance(text, Text):
        pieces = text.pieces()
    else:
        pieces = (text[at : at + BLOCK] for at in range(0, len(text), BLOCK))
    kept = ""
    for piece in pieces:
        kept += piece
        if len(kept) < BLOCK:
            continue
        end = kept.rfind("\n") + 1 or max(kept.rfind(" "), 0)
        if not end and len(kept) > LONGEST_WORD:
            end = len(kept)
        if end:
            yield kept[:end]
            kept = kept[end:]
    if kept:
        yield kept


def lines(text: str | Text) -> Iterator[str]:
    """Yield the lines of a text without their ends."""
    kept = ""
    for part in parts(text):
        *whole, kept = (kept + part).split("\n")
        yield from whole
    if kept:
        yield kept


def byte_lines(path: str | Path) -> Iterator[bytes]:
    """Yield the lines of a file with their ends, as `read_bytes` reads it."""
    kept: list[bytes] = []
    for block in read_bytes(path):
        kept.append(block)
        if b"\n" in block or b"\r" in block:
            # The last line may go on in the next block. If it ends with "\r", so may its end.
            *whole, last = b"".join(kept).splitlines(keepends=True)
            yield from whole
            kept = [last]
    if kept:
        yield b"".join(kept)


def standard_input() -> TextIO:
    """Return sys.stdin. Raise UserError if standard input is closed, as `<&-` does."""
    if sys.stdin is None:
        raise UserError("standard input is closed: give it a text, or name a file")
    return sys.stdin


def is_pipe(path: str | Path) -> bool:
    """Return whether a text can be read only once."""
    return str(path) == STDIN or Path(path).is_fifo()


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 token" or "1,200 tokens"."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def utf8(text: str) -> bytes:
    """Return a text as UTF-8. A lone surrogate, which is not a character, gets three bytes."""
    return text.encode("utf-8", "surrogatepass")


def _reader(path: str | Path) -> Callable[[], Iterator[str]]:
    """Return a function that reads a text, each time it is called, in pieces that are not empty."""
    if is_pipe(path):
        stdin = str(path) == STDIN
        # The file is closed and removed when the returned function is no longer used.
        file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        with writing(tempfile.gettempdir()), contextlib.ExitStack() as stack:
            pipe = standard_input().buffer if stdin else stack.enter_context(open(path, "rb"))
            shutil.copyfileobj(pipe, file)
        name = "standard input" if stdin else str(path)
        empty = f"{name} is empty: give text, and - for one text alone"
        return functools.partial(_not_blank, empty, functools.partial(_spooled, name, file))
    read = _directory if Path(path).is_dir() else _file
    empty = f"{path} is empty: give a file with text"
    return functools.partial(_not_blank, empty, functools.partial(read, Path(path)))


def _not_blank(empty: str, read: Callable[[], Iterator[str]]) -> Iterator[str]:
    blank = True
    for piece in read():
        blank = blank and not piece.strip(BLANKS)
        yield piece
    if blank:
        raise UserError(empty)


def _directory(root: Path) -> Iterator[str]:
    paths = sorted(root.rglob("*"))
    models = {path for path in paths if path.is_dir() and is_model(path)}
    for path in paths:
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if hidden or not path.is_file() or not models.isdisjoint(path.parents):
            continue
        piece = "\n"
        for piece in _file(path):
            yield piece
        if not piece.endswith("\n"):
            yield "\n"


def _file(path: Path) -> Iterator[str]:
    return _decoded(str(path), read_bytes(path))


def _spooled(name: str, file: IO[bytes]) -> Iterator[str]:
    file.seek(0)
    return _decoded(name, _decompressed(name, file))


def read_bytes(path: str | Path) -> Iterator[bytes]:
    """Read a file in blocks, and decompress it if its first bytes say that it is compressed.

    Raises:
        UserError: The file cannot be read or is damaged.
    """
    try:
        with open(path, "rb") as file:
            yield from _decompressed(str(path), file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _decoded(name: str, blocks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, kept, mark = 0, "", "\ufeff"  # a byte order mark is not part of the text
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
        # A "\r" at the end may be the first half of a CRLF.
        kept = "\r" if block and text.endswith("\r") else ""
        text = text[: len(text) - len(kept)].replace("\r\n", "\n").replace("\r", "\n")
        if text:
            yield text


class _Decompressor(Protocol):
    """What reads one member of a compressed file."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Compressor(Protocol):
    """What writes a compressed file."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _gzip() -> _Decompressor:
    return zlib.decompressobj(wbits=31)


def _zstd() -> _Decompressor:
    try:
        from compression.zstd import ZstdDecompressor  # Python 3.14
    except ImportError:
        return _zstandard().ZstdDecompressor().decompressobj()
    return ZstdDecompressor()


def _zstd_compressor() -> _Compressor:
    try:
        from compression.zstd import ZstdCompressor  # Python 3.14
    except ImportError:
        return _zstandard().ZstdCompressor().compressobj()
    return ZstdCompressor()


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise MissingPackage(
            "zstd needs Python 3.14 or the package zstandard: pip install zstandard, or use "
            "another format"
        ) from None
    return zstandard


# The formats by their first bytes. No UTF-8 text begins with them.
_FORMATS: dict[bytes, tuple[str, Callable[[], _Decompressor]]] = {
    rb"\x1f\x8b": ("gzip", _gzip),
    rb"BZh[1-9]1AY&SY": ("bzip2", bz2.BZ2Decompressor),
    rb"\xfd7zXZ\x00": ("xz", lzma.LZMADecompressor),
    rb"\x28\xb5\x2f\xfd": ("zstd", _zstd),
}


def _decompressed(name: str, file: IO[bytes]) -> Iterator[bytes]:
    block = file.read(BLOCK)
    found = [format for magic, format in _FORMATS.items() if re.match(magic, block)]
    if not found:
        while block:
            yield block
            block = file.read(BLOCK)
        return
    [(kind, decompressor)] = found
    member = None  # a file may have several members, with zeros between them
    while block or (block := file.read(BLOCK)):
        if member is None and not (block := block.lstrip(b"\0")):
            continue
        try:
            member = member or decompressor()
            data = member.decompress(block)
        except MissingPackage as error:
            raise UserError(f"cannot read {name}: {error}") from error
        except Exception as error:  # each module raises exceptions of its own
            raise UserError(f"{name} is damaged {kind} data ({error})") from error
        if data:
            yield data
        block = b""
        if member.eof:
            block, member = member.unused_data, None
    if member is not None:
        raise UserError(f"{name} is cut off: its {kind} data has no end")


# What compresses a file whose name ends so.
COMPRESSORS: dict[str, Callable[[], _Compressor]] = {
    ".gz": lambda: zlib.compressobj(wbits=31),
    ".bz2": bz2.BZ2Compressor,
    ".xz": lzma.LZMACompressor,
    ".zst": _zstd_compressor,
}


def compressed(path: str | Path, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Compress the pieces of a file if its name ends with .gz, .bz2, .xz or .zst.

    Raises:
        MissingPackage: The name ends with .zst, and the package zstandard is not installed.
    """
    make = COMPRESSORS.get(Path(path).suffix)
    if make is None:
        yield from pieces
        return
    compressor = make()
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()
