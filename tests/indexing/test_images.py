"""The decoder on sound, odd and bad pictures, each with the exact outcome."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin, features

from indexing import images
from indexing.errors import ImageError, QueryError
from indexing.images import (
    DRAFT_MARGIN,
    MAX_BYTES,
    MAX_PIXELS,
    PixelBudget,
    crop_fraction,
    decode_image,
    decoding,
    extent_of,
    read_bytes,
    read_image,
)
from indexing.models.pictures import resized

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def array(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def quarters(width: int = 32, height: int = 16) -> Image.Image:
    """Red and green above, blue and white below: no two orientations look the same."""
    picture = Image.new("RGB", (width, height), WHITE)
    w, h = width // 2, height // 2
    picture.paste(RED, (0, 0, w, h))
    picture.paste(GREEN, (w, 0, width, h))
    picture.paste(BLUE, (0, h, w, height))
    return picture


def corners(picture: Image.Image) -> list[tuple[int, ...]]:
    pixels = array(picture)
    return [tuple(pixels[y, x].tolist()) for y in (1, -2) for x in (1, -2)]


def chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(
    width: int, height: int, bits: int, colour: int, row: bytes, *, extra: bytes = b""
) -> bytes:
    """A PNG by hand, `row` given once for all rows and without its filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress((b"\0" + row) * min(height, 4)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def palette_with_alpha() -> Image.Image:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    return picture


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def grey16(*values: int) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint16))


def animation() -> tuple[Image.Image, list[Image.Image]]:
    return quarters(), [Image.new("RGB", (32, 16), BLUE), Image.new("RGB", (32, 16), GREEN)]


FOUR = [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        pytest.param(saved(quarters(), "PNG"), 0, id="png"),
        pytest.param(saved(quarters(), "BMP"), 0, id="bmp"),
        pytest.param(saved(quarters(), "GIF"), 0, id="gif"),
        pytest.param(saved(quarters(), "WEBP", lossless=True), 0, id="webp lossless"),
        pytest.param(saved(quarters(), "WEBP"), 8, id="webp"),
        pytest.param(saved(quarters(), "JPEG"), 3, id="jpeg"),
        pytest.param(saved(quarters(), "JPEG", progressive=True), 3, id="progressive jpeg"),
        pytest.param(saved(quarters().convert("CMYK"), "JPEG"), 3, id="adobe cmyk jpeg"),
        pytest.param(saved(quarters().convert("CMYK"), "TIFF"), 0, id="cmyk tiff"),
        pytest.param(saved(quarters(), "TIFF"), 0, id="tiff"),
        pytest.param(saved(quarters(), "TIFF", compression="tiff_lzw"), 0, id="lzw tiff"),
        pytest.param(saved(quarters().convert("RGBA"), "PNG"), 0, id="opaque rgba"),
        pytest.param(saved(quarters().quantize(8), "PNG"), 0, id="palette png"),
        pytest.param(
            saved(animation()[0], "GIF", save_all=True, append_images=animation()[1]),
            0,
            id="animated gif",
        ),
        pytest.param(
            saved(animation()[0], "PNG", save_all=True, append_images=animation()[1]),
            0,
            id="animated png",
        ),
        pytest.param(
            saved(
                animation()[0], "WEBP", save_all=True, append_images=animation()[1], lossless=True
            ),
            0,
            id="animated webp",
        ),
        pytest.param(
            saved(animation()[0], "TIFF", save_all=True, append_images=animation()[1]),
            0,
            id="multi-page tiff",
        ),
        pytest.param(
            saved(animation()[0], "MPO", save_all=True, append_images=animation()[1]), 3, id="mpo"
        ),
        pytest.param(
            saved(quarters(), "AVIF", quality=100) if features.check("avif") else b"",
            8,
            id="avif",
            marks=avif,
        ),
    ],
)
def test_sound_pictures(data: bytes, tolerance: int) -> None:
    picture = decode_image(data)
    assert (picture.mode, picture.size) == ("RGB", (32, 16))
    for seen, expected in zip(corners(picture), FOUR, strict=True):
        assert seen == pytest.approx(expected, abs=tolerance)


G, A = 200, 128  # a grey, and an alpha of about a half: 200 * 128/255 + 127 = 227


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(saved(Image.new("1", (2, 1), 1), "PNG"), [255, 255], id="1-bit"),
        pytest.param(saved(Image.new("L", (1, 1), 7), "PNG"), [7], id="1 x 1"),
        pytest.param(png(1, 1, 8, 4, bytes([G, A])), [227], id="LA"),
        pytest.param(png(2, 1, 8, 4, bytes([G, 0, G, 255])), [255, G], id="LA clear and opaque"),
        pytest.param(png(1, 1, 8, 6, bytes([G, G, G, A])), [227], id="RGBA"),
        pytest.param(
            png(1, 1, 8, 6, bytes([0, 0, 0, 0])), [255], id="black that is fully transparent"
        ),
        pytest.param(
            png(2, 1, 8, 2, bytes([9, 9, 9, 8, 8, 8]), extra=chunk(b"tRNS", words(9, 9, 9))),
            [255, 8],
            id="RGB with one transparent colour",
        ),
        pytest.param(
            png(2, 1, 8, 0, bytes([9, 8]), extra=chunk(b"tRNS", words(9))),
            [255, 8],
            id="grey with one transparent value",
        ),
        pytest.param(png(8, 1, 1, 0, bytes([0b10101010])), [255, 0] * 4, id="1-bit grey, by hand"),
        pytest.param(
            png(4, 1, 16, 0, words(0, 257 * 100, 32768, 65535)),
            [0, 100, 128, 255],
            id="16-bit grey PNG",
        ),
        pytest.param(
            png(2, 1, 16, 0, words(1000, 65535), extra=chunk(b"tRNS", words(65535))),
            [4, 255],
            id="16-bit grey with transparent white",
        ),
        pytest.param(
            png(2, 1, 16, 0, words(1000, 65535), extra=chunk(b"tRNS", words(1000))),
            [255, 255],
            id="16-bit grey with a transparent grey",
        ),
        pytest.param(png(1, 1, 16, 2, words(51400, 51400, 51400)), [G], id="16-bit RGB"),
        pytest.param(
            png(1, 1, 16, 6, words(51400, 51400, 51400, 0)), [255], id="16-bit RGBA, clear"
        ),
        pytest.param(saved(grey16(0, 25700, 65535), "TIFF"), [0, 100, 255], id="16-bit TIFF"),
        pytest.param(
            saved(Image.fromarray(np.array([[0, 1000, 65535]], np.int32)), "TIFF"),
            [0, 4, 255],
            id="32-bit integers up to 65535",
        ),
        pytest.param(
            saved(Image.fromarray(np.array([[-5, 100, 255]], np.int32)), "TIFF"),
            [0, 100, 255],
            id="32-bit integers up to 255",
        ),
        pytest.param(
            saved(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"),
            [0, 128, 255],
            id="floats up to 1",
        ),
        pytest.param(
            saved(Image.fromarray(np.array([[-1, 100.4, 254]], np.float32)), "TIFF"),
            [0, 100, 254],
            id="floats up to 255",
        ),
        pytest.param(
            saved(Image.fromarray(np.array([[np.nan, np.inf, 0.5]], np.float32)), "TIFF"),
            [0, 0, 128],
            id="floats with NaN and infinity",
        ),
    ],
)
def test_greys_and_transparency(data: bytes, expected: list[int]) -> None:
    pixels = array(decode_image(data))
    assert pixels.tolist() == [[[value] * 3 for value in expected]]


@pytest.mark.parametrize(("kind", "mode"), [("<u2", "I;16"), (">u2", "I;16B")])
def test_every_16_bit_grey_is_rounded_to_the_nearest(kind: str, mode: str) -> None:
    values = np.arange(65536).reshape(256, 256)
    stored = Image.fromarray(values.astype(kind))
    assert stored.mode == mode
    pixels = array(decode_image(saved(stored, "TIFF")))
    assert np.array_equal(pixels[:, :, 1], np.rint(values / 65535 * 255))


def deep(mode: str) -> Image.Image:
    noise = np.random.default_rng(3).random((40, 60))
    values = {"I;16": noise * 65535, "I": noise * 3e9, "F": noise * 250}[mode]
    kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    return Image.fromarray(np.minimum(values, 2**31 - 1).astype(kinds[mode]))


@pytest.mark.parametrize("tile", [1, 7, 60, 601])
def test_pictures_converted_in_parts_are_those_converted_at_once(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    glassy = natural(60, 40)
    glassy.putalpha(natural(60, 40, seed=1).convert("L"))
    palette = natural(60, 40).quantize(16)
    sources = [
        *(saved(deep(mode), "TIFF") for mode in ("I;16", "I", "F")),
        saved(glassy, "PNG"),
        saved(glassy.convert("LA"), "PNG"),
        saved(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        saved(palette, "GIF", transparency=3),
    ]
    whole = [array(decode_image(data)) for data in sources]
    assert all(pixels.std() > 10 for pixels in whole)
    monkeypatch.setattr(images, "_TILE", tile)
    for data, expected in zip(sources, whole, strict=True):
        assert np.array_equal(array(decode_image(data)), expected)


def test_palette_with_alpha() -> None:
    data = saved(palette_with_alpha(), "PNG", transparency=bytes([255, 0, 128]))
    assert array(decode_image(data)).tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 255]]]


def test_gif_with_transparency() -> None:
    data = saved(palette_with_alpha(), "GIF", transparency=1)
    assert array(decode_image(data)).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_palette_alpha_mode() -> None:
    picture = Image.new("PA", (1, 1))
    picture.putpalette([0, 0, 0])
    picture.putpixel((0, 0), (0, 128))
    assert array(decode_image(saved(picture, "TIFF"))).tolist() == [[[127, 127, 127]]]


def test_adobe_cmyk_is_stored_inverted() -> None:
    """Ink values 255 - x in the file, the Adobe marker present, and the colour comes out."""
    ink = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in ink
    assert array(decode_image(ink))[8, 8] == pytest.approx(RED, abs=3)
    assert array(decode_image(ink, at_least=4))[1, 1] == pytest.approx(RED, abs=3)


def test_colour_profiles_are_ignored() -> None:
    plain = saved(quarters(), "PNG")
    tagged = saved(quarters(), "PNG", icc_profile=b"not even a profile")
    assert array(decode_image(plain)).tolist() == array(decode_image(tagged)).tolist()


STORED = {  # how a picture is stored so that its orientation tag makes it upright again
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_eight_orientations_are_identical(kind: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    upright = Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8))
    for orientation, method in STORED.items():
        stored = upright if method is None else upright.transpose(method)
        picture = decode_image(saved(stored, kind, exif=exif(orientation), **options))
        assert np.array_equal(array(picture), array(upright)), orientation
        assert 0x0112 not in picture.getexif()


@pytest.mark.parametrize("at_least", [None, 32])
def test_eight_orientations_of_a_jpeg(at_least: int | None) -> None:
    """One JPEG stream under eight tags: each result is the first one, turned."""
    data = saved(natural(303, 203), "JPEG", quality=90)
    plain = decode_image(data, at_least=at_least)
    assert plain.size == ((303, 203) if at_least is None else (152, 102))
    for orientation, method in STORED.items():
        tags = exif(orientation).tobytes()
        segment = b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags
        picture = decode_image(data[:2] + segment + data[2:], at_least=at_least)
        stored = picture if method is None else picture.transpose(method)
        assert np.array_equal(array(stored), array(plain)), orientation
        # What lies beyond the picture is turned, too: upright it is read as the plain one.
        turned = resized(picture, lambda size: (size[0] // 2, size[1] // 2))
        straight = resized(plain, lambda size: (size[0] // 2, size[1] // 2))
        stored = turned if method is None else turned.transpose(method)
        assert extent_of(picture).whole == ((203, 303) if orientation > 4 else (303, 203))
        # Resizing goes along rows first, and rounds in between.
        assert np.abs(array(stored).astype(int) - array(straight)).mean() < 0.4


@avif
def test_orientation_of_avif() -> None:
    stored = quarters().transpose(Image.Transpose.ROTATE_90)
    picture = decode_image(saved(stored, "AVIF", quality=100, exif=exif(6)))
    for seen, expected in zip(corners(picture), FOUR, strict=True):
        assert seen == pytest.approx(expected, abs=8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize(
    "broken",
    [
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"x",
    ],
)
def test_broken_exif_is_no_reason_to_refuse(broken: bytes) -> None:
    data = saved(quarters(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken
    assert array(decode_image(data[:2] + segment + data[2:])).tolist() == (
        array(decode_image(data)).tolist()
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("length", [6, 10, 13, 14])
def test_exif_cut_in_its_header(kind: str, length: int) -> None:
    tags = b"Exif\0\0MM\0*\0\0\0\x08"[:length]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(quarters(), kind, exif=tags, **options)
    assert array(decode_image(data)).tolist() == array(quarters()).tolist()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", b"x")
    return file.getvalue()


def bmp_header(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it looks like an empty file (0 bytes)"),
        (bytes(5000), "it looks like zero bytes throughout"),
        (b"\x07\x93\xfe\x01\x02", "it looks like unknown data"),
        (b"<!DOCTYPE html><title>404</title>", "it looks like an HTML page"),
        (b"\xef\xbb\xbf\n <html lang=de>", "it looks like an HTML page"),
        (b"<?xml version='1.0'?><svg xmlns='...'/>", "it looks like an SVG drawing"),
        (b"<svg width='9'></svg>", "it looks like an SVG drawing"),
        (b"not found\n", "it looks like text ('not found')"),
        (b"BMW spare part", "it looks like text ('bmw spare part')"),
        ("Stra\u00dfe".encode() + b"a" * 5000, "it looks like text ("),
        ("\ufeffnicht gefunden".encode("utf-16-le"), "it looks like text ('nicht gefunden')"),
        (b'{"error": 404}', "it looks like text ('{\"error\": 404}')"),
        (zipped(), "it looks like a ZIP archive"),
        (b"%PDF-1.7\n%\xe2\xe3", "it looks like a PDF document"),
        (b"\x1f\x8b\x08\0", "it looks like gzip data"),
        (b"8BPS\0\x01" + bytes(30), "it looks like a Photoshop document (PSD)"),
        (saved(quarters(), "ICO"), "it looks like an icon (ICO)"),
        (saved(quarters(), "JPEG2000"), "it looks like a JPEG 2000 picture"),
        (saved(quarters(), "TGA"), "it looks like unknown data"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it looks like a HEIC picture"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "it looks like a video"),
        (b"\xff\x0a\xfa\x1f\x01", "it looks like a JPEG XL picture"),
        (
            png(20_000, 20_000, 8, 2, b"\0" * 60_000),
            "20000 x 20000 pixels, the limit is 64,000,000 in all",
        ),
        (bmp_header(30_000, 30_000), "30000 x 30000 pixels, the limit is"),
        (bmp_header(2**31 - 1, 2**31 - 1), "2147483647 x 2147483647 pixels, the limit is"),
        (bmp_header(0, 5), "BMP data that cannot be decoded"),
        (bmp_header(100, 100), "BMP data that cannot be decoded"),
        (b"\xff\xd8\xff\xe0", "JPEG data that cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "PNG data that cannot be decoded"),
        (b"GIF89a", "GIF data that cannot be decoded"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP data that cannot be decoded"),
        (b"II*\0\x08\0\0\0", "TIFF data that cannot be decoded"),
        (b"BM\xff\xff", "BMP data that cannot be decoded"),
        pytest.param(
            b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "AVIF data that cannot be decoded", marks=avif
        ),
        (
            saved(Image.new("RGB", (4, 4)), "PNG").replace(b"IDAT", b"IDAX"),
            "PNG data that cannot be decoded",
        ),
    ],
)
def test_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as error:
        decode_image(data)
    message = str(error.value)
    assert reason in message
    assert "\n" not in message
    if "looks like" in message:
        assert message.startswith("not a picture we read")
        assert "use JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF" in message or not features.check(
            "avif"
        )


def test_the_pixel_limit_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(ImageError, match="pixels, the limit is"):
        decode_image(png(MAX_PIXELS + 1, 1, 1, 0, b"\0"))
    with pytest.raises(AssertionError, match="decoded"):
        decode_image(png(MAX_PIXELS, 1, 1, 0, b"\0"))


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_large_pictures_are_refused_without_a_warning() -> None:
    with pytest.raises(ImageError, match="10000 x 10000 pixels, the limit is"):
        decode_image(png(10_000, 10_000, 8, 0, bytes(10_000)))


# Decodes within as many bytes a pixel as its argument says, or raises ImageError.
FRUGAL = """
import resource, sys
from pathlib import Path
import numpy as np
from PIL import Image
from indexing.images import decode_image
data = Path(sys.argv[1]).read_bytes()
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = size + int(float(sys.argv[2]) * 16_000_000)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
decode_image(data)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["16-bit", "float", "RGBA", "RGB", "turned"])
def test_large_pictures_take_little_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "large"
    side = 4000
    if kind == "16-bit":
        Image.new("I;16", (side, side), 999).save(path, "PNG")
    elif kind == "float":
        Image.new("F", (side, side), 0.5).save(path, "TIFF", compression="tiff_lzw")
    elif kind == "RGBA":
        Image.new("RGBA", (side, side), (9, 9, 9, 9)).save(path, "PNG")
    else:
        tags = exif(6) if kind == "turned" else None
        Image.new("RGB", (side, side), RED).save(path, "PNG", exif=tags)
    limit = {"16-bit": 9, "float": 12, "RGBA": 11, "RGB": 6, "turned": 10}[kind]
    decoded = subprocess.run(
        [sys.executable, "-c", FRUGAL, path, str(limit)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert decoded.returncode == 0, decoded.stderr


def test_the_byte_limit() -> None:
    with pytest.raises(ImageError, match="50,000,001 bytes, the limit is 50,000,000"):
        decode_image(bytes(MAX_BYTES + 1))


def test_a_long_and_narrow_picture() -> None:
    assert decode_image(saved(Image.new("RGB", (1, 10_000), RED), "PNG")).size == (1, 10_000)
    jpeg = saved(Image.new("RGB", (1, 10_000), RED), "JPEG")
    assert decode_image(jpeg, at_least=128).size == (1, 10_000)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        pytest.param("AVIF", {}, marks=avif),
    ],
)
def test_a_cut_file_is_refused_or_complete(kind: str, options: dict[str, Any]) -> None:
    """Wherever a file is cut, no half-grey picture comes out of it."""
    data = saved(natural(60, 40), kind, **options)
    whole = array(decode_image(data))
    cuts = [*range(1, len(data), max(1, len(data) // 40)), *range(len(data) - 12, len(data))]
    for cut in cuts:
        try:
            picture = decode_image(data[:cut])
        except ImageError:
            continue
        assert cut > 0.9 * len(data)  # only checksums and end marks can be missing
        assert np.array_equal(array(picture), whole)


def test_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(5)
    sources = [saved(natural(24, 16), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")]
    outcomes = set()
    for data in sources * 60:
        mutant = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, len(mutant), rng.integers(1, 12))
        mutant[places] = rng.integers(0, 256, len(places))
        try:
            outcomes.add(decode_image(mutant.tobytes(), at_least=4).mode)
        except ImageError:
            outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}


def test_a_tag_of_the_wrong_type_is_damage() -> None:
    """Pillow takes the text for a number: TypeError."""
    data = bytearray(saved(Image.new("1", (5, 4)), "TIFF"))
    offsets = data.index(struct.pack("<HHI", 0x0111, 4, 1))  # StripOffsets, one LONG
    data[offsets + 2] = 2  # ASCII
    with pytest.raises(ImageError, match="TIFF data that cannot be decoded"):
        decode_image(bytes(data))


def test_too_little_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(ImageError, match="too little memory to decode it: save a smaller"):
        decode_image(saved(quarters(), "PNG"))
    assert images._BUDGET._left == MAX_PIXELS


def test_a_budget_lets_in_what_fits_and_holds_up_the_rest() -> None:
    budget = PixelBudget(10)
    waiting, entered = threading.Event(), threading.Event()
    wait = budget._freed.wait

    def noted(timeout: float | None = None) -> bool:
        waiting.set()
        return wait(timeout)

    budget._freed.wait = noted  # type: ignore[method-assign]

    def enter() -> None:
        with budget.take(5):
            entered.set()

    other = threading.Thread(target=enter)
    with budget.take(4), budget.take(2):
        other.start()
        assert waiting.wait(60)
        assert not entered.is_set()
    other.join(60)
    assert entered.is_set()
    assert budget._left == 10


@pytest.mark.parametrize(
    ("kind", "options", "pixels"),
    [
        ("PNG", {}, 640 * 480),
        ("JPEG", {}, 160 * 120),  # decoded at a quarter
        ("JPEG", {"progressive": True}, 640 * 480),  # of which a quarter is made
    ],
)
def test_a_picture_counts_until_its_block_ends(
    kind: str, options: dict[str, Any], pixels: int
) -> None:
    data = saved(natural(640, 480), kind, **options)
    with decoding(data, at_least=50) as picture:
        assert picture.size == ((640, 480) if kind == "PNG" else (160, 120))
        assert images._BUDGET._left == MAX_PIXELS - pixels
    assert images._BUDGET._left == MAX_PIXELS
    decode_image(data)
    with pytest.raises(ImageError):
        decode_image(data[:-5000])
    assert images._BUDGET._left == MAX_PIXELS


def natural(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with the 1/f spectrum of photographs, and a few hard edges, as products have."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    amplitude = 1 / np.maximum(np.hypot(fx, fy), 1 / max(width, height))
    planes = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
        plane = np.fft.irfft2(amplitude * phase, (height, width))
        planes.append(128 + 45 * (plane - plane.mean()) / plane.std())
    picture = Image.fromarray(np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = rng.integers(0, width), rng.integers(0, height)
        box = (int(x), int(y), int(x) + width // 4, int(y) + height // 5)
        draw.rectangle(box, fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    return picture


def small(picture: Image.Image) -> NDArray[np.float64]:
    return np.asarray(resized(picture, lambda _: (128, 128)), dtype=np.float64)


# Sizes that halve evenly and sizes that do not; the last is decoded at a quarter.
SIZES = [(640, 512), (783, 601), (599, 1023), (1201, 1035)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0}), ("CMYK", {})],
)
def test_scaled_decoding_is_close_to_the_full_decode(
    size: tuple[int, int], mode: str, options: dict[str, Any]
) -> None:
    data = saved(natural(*size).convert(mode), "JPEG", quality=90, **options)
    full, scaled = decode_image(data), decode_image(data, at_least=128)
    assert full.size == size
    scale = 4 if min(size) >= 4 * 224 else 2
    assert scaled.size == (-(-size[0] // scale), -(-size[1] // scale))
    assert extent_of(scaled) == (size, (0, 0, size[0] / scale, size[1] / scale))
    assert extent_of(full) == (size, None)
    a, b = small(full), small(scaled)
    assert np.abs(a - b).mean() < 1.2
    a, b = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    assert (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) > 0.999


@pytest.mark.parametrize("shorter", [1, 7, 255, 256, 511, 512, 1023, 1024, 2047, 2048, 5000])
def test_the_shorter_side_keeps_the_margin(shorter: int) -> None:
    data = saved(Image.new("L", (shorter, shorter + 9), 90), "JPEG")
    for at_least in (1, 64, 128):
        side = min(decode_image(data, at_least=at_least).size)
        assert side >= min(shorter, DRAFT_MARGIN * at_least)
        # Scales are 1, 1/2, 1/4 and 1/8: without need, nothing is decoded twice too large.
        assert side < 4 * DRAFT_MARGIN * at_least or side == -(-shorter // 8)


def test_at_least_leaves_other_formats_alone() -> None:
    picture = natural(300, 200)
    data = saved(picture, "PNG")
    assert array(decode_image(data, at_least=8)).tolist() == array(picture).tolist()


def test_threads_get_what_one_thread_gets() -> None:
    pictures = [saved(natural(90, 70, seed), "JPEG") for seed in range(12)]
    one = [array(decode_image(data)).tolist() for data in pictures]
    with ThreadPoolExecutor(4) as pool:
        many = [array(picture).tolist() for picture in pool.map(decode_image, pictures)]
    assert many == one


# Files


@pytest.mark.parametrize(
    "name",
    [
        b"plain.png",
        b"wrong-extension.jpg",
        b"no extension",
        b"x" * 251 + b".png",
        b"caf\xe9-not-utf-8.png",
        "\u9774\u5b50.png".encode(),
        b"new\nline.png",
    ],
)
def test_any_file_name_can_be_read(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))  # noqa: PTH118
    path.write_bytes(saved(quarters(), "PNG"))
    assert corners(read_image(path)) == FOUR
    path.write_bytes(b"no")
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value).isprintable()
    assert str(error.value).startswith(str(tmp_path))
    assert "it looks like text ('no')" in str(error.value)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "a folder, not a file"),
        (os.mkfifo, "a pipe or device, not a file"),
        (make_loop, "cannot be read: Too many levels of symbolic links"),
        (make_dangling, "cannot be read: No such file or directory"),
        (lambda path: None, "cannot be read: No such file or directory"),
        (Path.touch, "not a picture we read: it looks like an empty file (0 bytes)"),
    ],
)
def test_paths_that_are_no_picture(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "picture.jpg"
    make(path)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: {reason}")


def test_a_path_with_a_nul_and_one_too_long(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\\x00b: cannot be read: embedded null byte"):
        read_bytes(Path("a\0b"))
    with pytest.raises(ImageError, match="cannot be read: File name too long"):
        read_bytes(tmp_path / ("x" * 256))


def test_a_device_is_refused() -> None:
    with pytest.raises(ImageError, match="/dev/zero: a pipe or device, not a file"):
        read_bytes(Path("/dev/zero"))


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse: takes no room on the disk
    with pytest.raises(ImageError, match=r"huge\.jpg: more than 50,000,000 bytes"):
        read_bytes(path)


def test_refused_paths_leave_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        with pytest.raises(ImageError):
            read_bytes(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# Crops


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 20, 10)),
        ((0.5, 0.5, 0.5, 0.5), (10, 5, 20, 10)),
        ((0.1, 0.2, 0.3, 0.4), (2, 2, 8, 6)),
        ((0, 0, 1e-9, 1e-9), (0, 0, 1, 1)),
        ((0.9999999, 0.9999999, 1e-9, 1e-9), (19, 9, 20, 10)),
        ((0.7, 0, 0.3000004, 1), (14, 0, 20, 10)),
    ],
)
def test_crop(box: tuple[float, float, float, float], expected: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 20, 3), dtype=np.uint8)
    left, top, right, bottom = expected
    cropped = array(crop_fraction(Image.fromarray(pixels), box))
    assert cropped.tolist() == pixels[top:bottom, left:right].tolist()


@pytest.mark.parametrize(
    "box",
    [
        (-0.1, 0, 0.5, 0.5),
        (0, 0, 0, 1),
        (0, 0, 1, -1),
        (0.6, 0, 0.5, 1),
        (0, 0.6, 1, 0.5),
        (10, 10, 200, 200),
        (float("nan"), 0, 1, 1),
        (0, 0, float("inf"), 1),
    ],
)
def test_bad_crops_are_named(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(QueryError) as error:
        crop_fraction(quarters(), box)
    assert str(error.value).startswith("crop {:g},{:g},{:g},{:g} is not inside".format(*box))
