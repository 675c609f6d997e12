"""The one decoder: bytes of a picture file to upright 8-bit RGB, or a reason why not.

Index, query, server and training all come through here, so that a picture looks the same
to the encoder wherever it enters. Embedded colour profiles (ICC) are ignored: CMYK is
converted by Pillow's plain formula, and CMYK in a JPEG is read as inverted, as Adobe writes
it and as nearly all such files are.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from indexing.errors import ImageError, QueryError
from indexing.messages import reason, shown

MAX_BYTES = 50_000_000
# At most a gigabyte while a WebP is decoded, which takes 16 bytes a pixel; most formats take 8.
MAX_PIXELS = 64_000_000
# Scaled decoding keeps the shorter side at this many times `at_least`, so that a picture of 800
# pixels is decoded at a half for a tower of 224. On shop pictures of 800 to 1,000 pixels the
# cosine of a MobileNetV2's features with the full decode's is .9992 to .9994 on average and at
# least .998; at 1.5 it falls to .998 and .996.
DRAFT_MARGIN = 1.75

# The allow-list. Plugins are called directly: `Image.open` would warn about large pictures
# by a process-wide setting before their size could be refused here. A JPEG with further
# pictures behind it (MPO) is read as the JPEG that it begins with.
_DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
if features.check("avif"):
    _DECODERS["AVIF"] = AvifImagePlugin.AvifImageFile
_USE = f"use {', '.join(list(_DECODERS)[:-1])} or {list(_DECODERS)[-1]}"

# What Pillow raises on damaged data: the errors of its documentation, RuntimeError from its
# AVIF plugin, TypeError from its TIFF plugin, and struct.error for EXIF that is cut in its
# header. Tried on 75,000 mutants.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where the process turns warnings into errors
)

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIC picture"),
    (4, b"ftyp", "a video"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"8BPS", "a Photoshop document (PSD)"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "gzip data"),
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What they make of a box (left, top, right, bottom) in a picture of w x h.
Box = tuple[float, float, float, float]
_TURNED: dict[int, Callable[[Box, int, int], Box]] = {
    2: lambda b, w, h: (w - b[2], b[1], w - b[0], b[3]),
    3: lambda b, w, h: (w - b[2], h - b[3], w - b[0], h - b[1]),
    4: lambda b, w, h: (b[0], h - b[3], b[2], h - b[1]),
    5: lambda b, w, h: (b[1], b[0], b[3], b[2]),
    6: lambda b, w, h: (h - b[3], b[0], h - b[1], b[2]),
    7: lambda b, w, h: (h - b[3], w - b[2], h - b[1], w - b[0]),
    8: lambda b, w, h: (b[1], w - b[2], b[3], w - b[0]),
}

_EXTENT = "shoplens_extent"  # an attribute of pictures
_TILE = 1 << 20  # pixels that are converted at once


class PixelBudget:
    """Pixels that all threads together may have in work."""

    def __init__(self, pixels: int) -> None:
        self._left = pixels
        self._freed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels are left, and keep them until the block ends."""
        with self._freed:
            self._freed.wait_for(lambda: self._left >= pixels)
            self._left -= pixels
        try:
            yield
        finally:
            with self._freed:
                self._left += pixels
                self._freed.notify_all()


_BUDGET = PixelBudget(MAX_PIXELS)


def decode_image(data: bytes, *, at_least: int | None = None) -> Image.Image:
    """An upright 8-bit RGB picture from the bytes of a file.

    EXIF orientation is applied, transparency is laid on white, deep greys are scaled to
    8 bits, and of an animation or a multi-page file the first frame is taken. With
    `at_least` (pixels), a JPEG may be decoded at a half, a quarter or an eighth of its
    size as long as its shorter side stays at least `DRAFT_MARGIN * at_least`; that is
    several times cheaper and hardly changes what a later resize to `at_least` gives. Resize it
    by `resized` (indexing/models/pictures.py), which asks `extent_of` it.

    Raises ImageError, with the reason, for anything else than a sound picture of an
    allowed format of at most MAX_BYTES and MAX_PIXELS.
    """
    with decoding(data, at_least=at_least) as picture:
        return picture


@contextmanager
def decoding(data: bytes, *, at_least: int | None = None) -> Iterator[Image.Image]:
    """`decode_image` for the length of a block, which should let go of the picture.

    However many threads decode, pictures in such blocks have MAX_PIXELS together; a thread
    whose picture would be too much waits. So a thread must not open one inside another.
    """
    if len(data) > MAX_BYTES:
        raise ImageError(f"{len(data):,} bytes, the limit is {MAX_BYTES:,}: save a smaller picture")
    kind = _kind(data)
    if kind not in _DECODERS:
        raise ImageError(f"not a picture we read: it looks like {kind}; {_USE}")
    with _reasons(kind):
        source = _DECODERS[kind](io.BytesIO(data))
        width, height = source.size
        pixels = width * height
        if pixels > MAX_PIXELS:
            raise ImageError(
                f"{width} x {height} pixels, the limit is {MAX_PIXELS:,} in all: "
                "save a smaller picture"
            )
        drafted, whole = None, source.size
        if at_least is not None and isinstance(source, JpegImagePlugin.JpegImageFile):
            smallest = max(1, math.ceil(DRAFT_MARGIN * at_least))
            drafted = source.draft(None, (smallest, smallest))
            if not source.info.get("progressive"):  # which is in memory as a whole all the same
                pixels = source.width * source.height
    with _BUDGET.take(pixels):
        with _reasons(kind):
            source.load()
            orientation = _orientation(source)
            # The pixels go on alone, uncopied: the file's object may hold them twice more.
            picture = source._new(source.im)
            del source
            picture = _to_rgb(picture)
            picture.info = {}  # an orientation left behind might be applied a second time
            # 783 pixels at a half are decoded as 392 although they fill 391.5. Taking all 392
            # would stretch the picture and cost more cosine than all else.
            shown: Box | None = None if drafted is None else drafted[1]
            if orientation in _UPRIGHT:
                if shown is not None:
                    shown = _TURNED[orientation](shown, *picture.size)
                picture = picture.transpose(_UPRIGHT[orientation])
                whole = whole[::-1] if orientation > 4 else whole
            if shown is not None:
                # Not in `info`, which what is cut out of a picture takes over.
                vars(picture)[_EXTENT] = Extent(whole, shown)
        yield picture


class Extent(NamedTuple):
    """Where in its pixels a picture is that was decoded at a fraction of its size.

    Attributes:
        whole: The size that the file has, upright.
        shown: The box that the picture fills. Its last row or column may be partly beyond.
    """

    whole: tuple[int, int]
    shown: Box | None


def extent_of(picture: Image.Image) -> Extent:
    """The extent of a picture; of what was made of one, it is all of its pixels."""
    found: Extent = vars(picture).get(_EXTENT, Extent(picture.size, None))
    return found


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file; never waits on a pipe, never reads beyond MAX_BYTES.

    Raises ImageError naming the path.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
                raise ImageError(f"{shown(path)}: {kind}, not a file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{shown(path)}: cannot be read: {why}") from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"{shown(path)}: more than {MAX_BYTES:,} bytes: save a smaller picture")
    return data


def read_image(path: Path, *, at_least: int | None = None) -> Image.Image:
    """`decode_image` of a file. Raises ImageError naming the path."""
    data = read_bytes(path)
    try:
        return decode_image(data, at_least=at_least)
    except ImageError as error:
        raise ImageError(f"{shown(path)}: {error}") from error


def crop_fraction(picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """The part (x, y, width, height) of a picture, in fractions 0..1 of its sides.

    At least one pixel comes back. Raises QueryError where the box is not inside.
    """
    x, y, width, height = box
    slack = 1e-6  # fractions written with few digits may add up to a little over 1
    inside = all(math.isfinite(value) for value in box) and x >= 0 and y >= 0
    if not (inside and width > 0 and height > 0 and x + width <= 1 + slack >= y + height):
        raise QueryError(
            f"crop {x:g},{y:g},{width:g},{height:g} is not inside the picture: give "
            "x,y,width,height as fractions with x + width <= 1 and y + height <= 1"
        )
    left = min(round(x * picture.width), picture.width - 1)
    top = min(round(y * picture.height), picture.height - 1)
    right = min(max(round((x + width) * picture.width), left + 1), picture.width)
    bottom = min(max(round((y + height) * picture.height), top + 1), picture.height)
    return picture.crop((left, top, right, bottom))


@contextmanager
def _reasons(kind: str) -> Iterator[None]:
    """Turns what goes wrong in Pillow into ImageError."""
    try:
        yield
    except MemoryError as error:
        raise ImageError("too little memory to decode it: save a smaller picture") from error
    except _DAMAGE as error:
        raise ImageError(
            f"{kind} data that cannot be decoded (cut short, damaged or of a rare kind): "
            f"{reason(error)}"
        ) from error


def _kind(data: bytes) -> str:
    """A name of `_DECODERS`, or in words what the data looks like."""
    if not data:
        return "an empty file (0 bytes)"
    for offset, signature, kind in _SIGNATURES:
        if data.startswith(signature, offset):
            return "AVIF" if kind == "a HEIC picture" and b"avif" in data[:64] else kind
    if text := _text(data):
        start = text.strip().lower()
        if start.startswith(("<!doctype html", "<html", "<head", "<body")):
            return "an HTML page"
        if "<svg" in start:
            return "an SVG drawing"
        return f"text ({start[:30]!r})"
    if data.startswith(b"BM"):
        return "BMP"
    return "zero bytes throughout" if not any(data) else "unknown data"


def _text(data: bytes) -> str:
    """The beginning of `data` as text, or nothing where it is not text."""
    start = data[:4096]
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = start.decode(encoding)
    except UnicodeDecodeError as error:
        if len(data) == len(start) or error.start < len(start) - 4:
            return ""
        text = start[: error.start].decode(encoding)  # the slice cut a character in two
    return text if all(character.isprintable() or character.isspace() for character in text) else ""


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 where it is missing or broken."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:  # a broken note about a picture is no reason to refuse the picture
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        convert = _deep_to_grey(picture)
    elif picture.has_transparency_data:
        convert = _laid_on_white
    else:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    canvas = Image.new("RGB", picture.size)
    for box in _tiles(picture.size):  # intermediate steps take many bytes a pixel
        canvas.paste(convert(picture.crop(box)), box)
    return canvas


def _tiles(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of at most _TILE pixels that cover a picture."""
    width, height = size
    across = min(width, _TILE)
    down = _TILE // across
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def _laid_on_white(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _deep_to_grey(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Scales parts of a picture of grey deeper than 8 bits; nothing is clipped.

    16-bit white is 65535. 32-bit integers and floats carry no white level: it is the
    smallest of 1 (floats only), 255, 65535 and 2**32 - 1 that no value exceeds.
    """
    if picture.mode.startswith("I;16"):
        greys = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # 65535 is 255 * 257
        transparent = picture.info.get("transparency")
        if isinstance(transparent, int):  # 16-bit PNG: this one grey is transparent
            greys[transparent] = 255
        return lambda part: Image.fromarray(greys[np.asarray(part)])
    levels = ([1.0] if picture.mode == "F" else []) + [255.0, 65535.0, 2.0**32 - 1]
    highest = max(float(_finite(picture.crop(box)).max()) for box in _tiles(picture.size))
    white = next((level for level in levels if highest <= level), highest)
    return lambda part: Image.fromarray(
        np.rint(np.clip(_finite(part) / white, 0, 1) * 255).astype(np.uint8)
    )


def _finite(picture: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0.0, neginf=0.0)
