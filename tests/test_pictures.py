import io
import itertools
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

import patchlib
from patchlib import load_picture
from patchlib.pictures import DataError, photographs, suffixes

LOSSY = {".avif", ".jfif", ".jpe", ".jpeg", ".jpg"}
OPTIONS = {
    ".avif": {"quality": 100, "subsampling": "4:4:4"},
    ".webp": {"lossless": True, "exact": True},
    ".jp2": {"irreversible": False},
} | {suffix: {"quality": 100, "subsampling": 0} for suffix in (".jfif", ".jpe", ".jpeg", ".jpg")}
SAVABLE = {
    ".avif": ["RGB", "RGBA"],
    ".bmp": ["1", "L", "P", "RGB"],
    ".dib": ["L", "RGB"],
    ".gif": ["1", "L", "P", "P transparent"],
    ".ico": ["RGBA"],
    ".im": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
    ".jp2": ["L", "LA", "RGB", "RGBA", "I;16"],
    ".jpeg": ["RGB"],
    ".pcx": ["1", "L", "P", "RGB"],
    ".pgm": ["L", "I;16"],
    ".png": ["1", "L", "L transparent", "LA", "P", "P transparent", "P alpha", "RGB", "RGB transparent", "RGBA"],
    ".apng": ["I;16", "I;16B", "I;16 transparent"],
    ".ppm": ["RGB"],
    ".qoi": ["RGB", "RGBA"],
    ".sgi": ["L", "RGB", "RGBA"],
    ".tga": ["L", "LA", "P", "RGB", "RGBA"],
    ".tif": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16", "I;16B"],
    ".tiff": ["RGB"],
    ".webp": ["RGB", "RGBA"],
} | {suffix: ["L", "RGB", "CMYK"] for suffix in (".jpg", ".jfif", ".jpe")}


def blocks(*values, size=8):
    """(16, 24) in six blocks of one value each."""
    return np.kron(np.array(values).reshape(2, 3), np.ones((size, size), int))


GREY = blocks(0, 51, 102, 153, 204, 255)
ALPHA = blocks(0, 255, 128, 64, 255, 0)
RGB = np.stack([GREY, blocks(255, 3, 90, 20, 0, 180), blocks(7, 250, 0, 60, 255, 31)], axis=-1)
DEEP = blocks(0, 255, 256, 30_000, 65_279, 65_535)
INDEX = blocks(0, 1, 2, 3, 4, 5)
PALETTE = RGB[::8, ::8].reshape(6, 3)


def grey(values):
    return np.repeat(values[..., None], 3, axis=-1)


def on_white(colour, alpha):
    return colour * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)


def image(mode, *channels):
    return Image.fromarray(np.stack(channels, axis=-1).astype("uint8").squeeze(), mode)


def indexed(mode="P"):
    made = Image.fromarray(INDEX.astype("uint8"), "P")
    made.putpalette(PALETTE.astype("uint8").tobytes())
    if mode == "PA":
        made = made.convert("PA")
        made.putalpha(Image.fromarray(ALPHA.astype("uint8")))
    return made


def sixteen(mode):
    kind = {"I": "int32", "I;16": "<u2", "I;16B": ">u2"}[mode]
    return Image.frombytes(mode, DEEP.shape[::-1], DEEP.astype(kind).tobytes())


CMYK = np.stack([blocks(0, 255, 10, 200, 30, 0), GREY, GREY[:, ::-1], blocks(0, 0, 40, 200, 255, 90)], axis=-1)

# A picture of each kind, what saving it needs, and its pixels as they should be read, by NumPy.
KINDS = {
    "1": (Image.fromarray(GREY > 102), {}, grey(255 * (GREY > 102))),
    "L": (image("L", GREY), {}, grey(GREY)),
    "L transparent": (image("L", GREY), {"transparency": 153}, grey(np.where(GREY == 153, 255, GREY))),
    "LA": (image("LA", GREY, ALPHA), {}, on_white(grey(GREY), ALPHA)),
    "P": (indexed(), {}, RGB),
    "P transparent": (indexed(), {"transparency": 3}, np.where(INDEX[..., None] == 3, 255, RGB)),
    "P alpha": (
        indexed(),
        {"transparency": bytes([255, 0, 128, 255, 7, 200])},
        on_white(RGB, np.array([255, 0, 128, 255, 7, 200])[INDEX]),
    ),
    "PA": (indexed("PA"), {}, on_white(RGB, ALPHA)),
    "RGB": (image("RGB", *np.moveaxis(RGB, -1, 0)), {}, RGB),
    "RGB transparent": (
        image("RGB", *np.moveaxis(RGB, -1, 0)),
        {"transparency": tuple(int(c) for c in PALETTE[2])},
        np.where(INDEX[..., None] == 2, 255, RGB),
    ),
    "RGBA": (image("RGBA", *np.moveaxis(RGB, -1, 0), ALPHA), {}, on_white(RGB, ALPHA)),
    "CMYK": (image("CMYK", *np.moveaxis(CMYK, -1, 0)), {}, (255 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255),
    "I": (sixteen("I"), {}, grey(DEEP // 256)),
    "I;16": (sixteen("I;16"), {}, grey(DEEP // 256)),
    "I;16B": (sixteen("I;16B"), {}, grey(DEEP // 256)),
    "I;16 transparent": (sixteen("I;16"), {"transparency": 30_000}, grey(np.where(DEEP == 30_000, 255, DEEP // 256))),
}


def assert_pixels(picture, expected, tolerance=1):
    assert picture.dtype == np.uint8 and picture.shape == expected.shape
    assert np.abs(picture - expected.astype(float)).max() <= tolerance


@pytest.mark.parametrize(("suffix", "kind"), [(s, kind) for s, kinds in SAVABLE.items() for kind in kinds])
def test_every_format_and_mode_gives_the_pixels_it_shows(tmp_path, suffix, kind):
    saved, options, expected = KINDS[kind]
    options = options | OPTIONS.get(suffix, {}) | ({"sizes": [(24, 16)]} if suffix == ".ico" else {})
    saved.save(tmp_path / f"picture{suffix}", **options)
    assert_pixels(load_picture(tmp_path / f"picture{suffix}"), expected, 4 if suffix in LOSSY else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pil_image_gives_the_pixels_of_its_file_and_is_left_as_it_was(kind):
    given, options, expected = KINDS[kind]
    given = given.copy()
    given.info |= options
    before = given.mode, given.tobytes()
    assert_pixels(load_picture(given), expected)
    assert (given.mode, given.tobytes()) == before


def test_sixteen_bits_of_grey_and_of_colour_are_cut_alike(tmp_path):
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in DEEP)
    colour = io.BytesIO(png(24, 16, 16, 2, rows))
    np.testing.assert_array_equal(load_picture(colour), load_picture(KINDS["I;16"][0]))


def png(width, height, bits, kind, rows, transparent=None):
    """A PNG as Pillow writes none; kind: 0 grey, 2 colour; its transparent colour."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    if transparent:
        header += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("mode", "tolerance"), [("YCbCr", 4), ("LAB", 16), ("HSV", 4), ("RGBX", 0), ("RGBa", 0)])
def test_other_colours_than_red_green_and_blue_are_converted(mode, tolerance):
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    given = KINDS["RGB"][0].convert("RGBA" if mode == "RGBa" else "RGB")
    given = ImageCms.profileToProfile(given, *profiles, outputMode="LAB") if mode == "LAB" else given.convert(mode)
    assert given.mode == mode
    assert_pixels(load_picture(given), RGB, tolerance)


UPRIGHT = {  # EXIF 2.32, table 6: what is done to the stored rows to see the picture as it was taken
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize(("suffix", "turn"), itertools.product([".jpg", ".png", ".webp", ".tif"], UPRIGHT))
def test_pictures_stand_upright(tmp_path, suffix, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    KINDS["RGB"][0].save(tmp_path / f"picture{suffix}", exif=exif, **OPTIONS.get(suffix, {}))
    assert_pixels(load_picture(tmp_path / f"picture{suffix}"), UPRIGHT[turn](RGB), 4)


def test_a_grey_picture_of_16_bits_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    KINDS["I;16"][0].save(tmp_path / "picture.png", exif=exif)
    assert_pixels(load_picture(tmp_path / "picture.png"), np.rot90(grey(DEEP // 256), -1), 0)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_tiffs_white_is_white_whatever_its_depth(bits):
    rows = np.array([[0, 2**bits - 1, 2 ** (bits - 1), 0]])
    packed = {16: rows.astype("<u2").tobytes(), 12: bytes.fromhex("000fff800000")}[bits]
    assert_pixels(load_picture(io.BytesIO(tiff(4, 1, bits, 1, packed))), grey(np.array([[0, 255, 128, 0]])), 0)


@pytest.mark.parametrize("bits", [8, 16])
def test_where_zero_is_white_it_is(bits):
    rows = np.array([[0, 2**bits - 1]]).astype(f"<u{bits // 8}")
    assert_pixels(load_picture(io.BytesIO(tiff(2, 1, bits, 1, rows.tobytes(), white=0))), grey(np.array([[255, 0]])), 0)


def tiff(width, height, bits, kind, pixels, white=1):
    """An uncompressed grey TIFF; kind: 1 unsigned, 2 signed, 3 floating point; white: 0 where zero is white."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, white), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(pixels)), (339, kind)]
    words = [len(tags).to_bytes(2, "little")]
    for tag, value in tags:
        fields = (tag, 2), (3, 2), (1, 4), (value, 4)
        words += [number.to_bytes(length, "little") for number, length in fields]
    return b"II*\0" + (8 + len(pixels)).to_bytes(4, "little") + pixels + b"".join(words) + bytes(4)


@pytest.mark.parametrize(("of", "to"), itertools.product([(20, 40), (40, 20), (30, 30), (7, 9)], [(10, 10), (6, 12)]))
def test_the_middle_is_cropped_and_resized_and_nothing_is_stretched(of, to):
    (height, width), (h, w) = of, to
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype="uint8")
    scale = min(height / h, width / w)  # the same along both sides
    left, top = (width - scale * w) / 2, (height - scale * h) / 2
    box = left, top, left + scale * w, top + scale * h
    expected = Image.fromarray(pixels).resize((w, h), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(load_picture(Image.fromarray(pixels), to), np.asarray(expected))
    if h == w:
        np.testing.assert_array_equal(load_picture(Image.fromarray(pixels), h), np.asarray(expected))


def test_path_file_and_image_are_one(tmp_path):
    path = tmp_path / "picture.png"
    KINDS["RGBA"][0].save(path)
    expected = load_picture(path, (8, 5))
    assert expected.flags.writeable
    with path.open("rb") as file:
        for same in (str(path), file, io.BytesIO(path.read_bytes()), Image.open(path)):
            np.testing.assert_array_equal(load_picture(same, (8, 5)), expected)


def test_the_first_of_several_frames_counts(tmp_path):
    first, second = KINDS["RGB"][0], Image.new("RGB", (24, 16))
    for name in ("moving.gif", "moving.png", "moving.webp", "moving.tif"):
        options = {"lossless": True} if name.endswith("webp") else {}
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        assert_pixels(load_picture(tmp_path / name), RGB)


def test_suffixes_are_those_of_pictures_alone():
    assert {*SAVABLE, ".apng", ".mpo", ".psd", ".xbm"} <= suffixes()
    assert not suffixes() & {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".grib", ".bufr", ".fits", ".wmf", ".emf"}


REFUSED = {
    "nowhere.png": (None, ["no such file"]),
    "text.png": (b"no picture at all", ["cannot identify"]),
    "half.png": (40, []),
    "half.jpg": (300, []),
    "half.tif": (300, []),
    "half.webp": (60, []),
    "float.tif": (tiff(2, 1, 32, 3, np.array([0, 1], "<f4").tobytes()), ["mode F"]),
    "wide.tif": (tiff(2, 1, 32, 1, np.array([0, 65536], "<i4").tobytes()), ["mode I", "0 to 65536", "0 to 65535"]),
    "negative.tif": (tiff(2, 1, 16, 2, np.array([-1, 5], "<i2").tobytes()), ["mode I", "-1 to 5", "0 to 65535"]),
    "signed.tif": (tiff(2, 1, 8, 2, np.array([-1, 5], "i1").tobytes()), ["8 bits with a sign", "0 to 255"]),
    "2 bits.png": (png(2, 1, 2, 0, b"\0\x60", [1]), ["transparent", "2, 4 or 16 bits", "alpha"]),
    "4 bits.png": (png(2, 1, 4, 0, b"\0\x3f", [3]), ["transparent", "2, 4 or 16 bits", "alpha"]),
    "16 bits.png": (png(1, 1, 16, 2, b"\0\1\0\2\0\3\0", [1, 2, 3]), ["transparent", "2, 4 or 16 bits", "alpha"]),
    "drawing.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", ["identify"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cant_be_read_is_refused_by_name(tmp_path, name):
    body, words = REFUSED[name]
    if isinstance(body, int):
        KINDS["RGB"][0].save(tmp_path / name)
        body = (tmp_path / name).read_bytes()[:body]
    if body is not None:
        (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError) as caught:
        load_picture(tmp_path / name)
    assert all(word in str(caught.value) for word in [str(tmp_path / name), *words]), caught.value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pipe.png", ["no such file"]),
        ("/dev/zero", ["no such file"]),
        ("~nobody-of-this-name/a.png", ["isn't a path"]),
        ("x" * 5000 + ".png", ["File name too long"]),
        ("bomb.png", ["400000000 pixels", "bomb"]),
    ],
)
def test_what_has_no_end_or_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    (tmp_path / "bomb.png").write_bytes(png(20_000, 20_000, 8, 0, b""))
    with pytest.raises(DataError) as caught:
        load_picture(name)
    assert all(word in str(caught.value) for word in words) and len(str(caught.value)) < 500, caught.value


def test_more_pixels_than_a_picture_may_have_are_refused_before_they_are_made():
    with pytest.raises(DataError, match="size: received 1000000, accepted: .*at most 134,217,728 pixels in all"):
        load_picture(KINDS["RGB"][0], 10**6)


@pytest.mark.parametrize(
    "size",
    [0, -3, 2.5, "64", (8,), (8, 0), (8, 8, 3), (None, None), True, (True, 8), pytest.param(10**9999, id="long")],
)
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(DataError, match="size: received"):
        load_picture(KINDS["RGB"][0], size)


@pytest.mark.parametrize("thing", [5, None, RGB, np.zeros((0, 5, 3), "uint8"), np.zeros((5, 0), "uint8")])
def test_what_is_no_picture_is_refused(thing):
    with pytest.raises(DataError, match=type(thing).__name__):
        load_picture(thing)


def test_it_is_public():
    assert patchlib.load_picture is load_picture and "load_picture" in patchlib.__all__


def test_the_photographs_are_in_colour_and_cut_as_every_picture_is():
    first, second = photographs(24)
    assert first.shape == second.shape == (24, 24, 3) and first.dtype == np.uint8
    from sklearn.datasets import load_sample_image

    np.testing.assert_array_equal(second, load_picture(Image.fromarray(load_sample_image("flower.jpg")), 24))
    assert all(np.ptp(picture.astype(int), axis=2).mean() > 10 for picture in (first, second))
