"""Whatever is handed in becomes an upright RGB picture or a ValueError that says what to do."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vtc_demo.core import images
from vtc_demo.core.images import load_rgb


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(mode="RGB", size=(32, 24)):
    values = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(size[1], size[0], 3) % 251
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_equal(kind, tmp_path):
    picture = gradient()
    file = tmp_path / "x.dat"  # the content decides, not the name
    file.write_bytes(encoded(picture, kind))
    for source in (file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes()), picture):
        loaded = load_rgb(source)
        assert loaded.mode == "RGB"
        assert np.array_equal(pixels(loaded), pixels(picture))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_alike(kind):
    picture = Image.new("RGB", (40, 40), (200, 60, 30))
    assert abs(pixels(load_rgb(encoded(picture, kind, quality=95))) - pixels(picture)).max() < 8


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes(mode):
    picture = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    loaded = load_rgb(picture)
    assert loaded.mode == "RGB"
    assert pixels(loaded).min() > 250


def test_cmyk_file():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    red = pixels(load_rgb(encoded(picture, "JPEG", quality=95)))[8, 8]
    assert red[0] > 200 and red[1] < 80 and red[2] < 80


def test_transparent_pixels_are_white_and_half_transparent_ones_mixed():
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 128), (8, 0, 16, 16))
    loaded = pixels(load_rgb(encoded(picture)))
    assert loaded[0, 0].tolist() == [255, 255, 255]
    assert abs(loaded[0, 12] - [255, 127, 127]).max() <= 1


def test_transparent_palette_entry():
    picture = Image.new("P", (16, 16), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.paste(1, (8, 0, 16, 16))
    loaded = pixels(load_rgb(encoded(picture, transparency=0)))
    assert loaded[0, 0].tolist() == [255, 255, 255]
    assert loaded[0, 12].tolist() == [40, 50, 60]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(16, 0)
    loaded = pixels(load_rgb(encoded(Image.fromarray(ramp))))
    assert np.array_equal(loaded[0, :, 0], np.arange(256))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255]),
        (np.array([0.0, 100.0, 255.0], np.float32), [0, 100, 255]),
        (np.array([0, 32768, 65535], np.int32), [0, 128, 255]),
        (np.array([-1000, 0, 1000], np.int32), [0, 128, 255]),
        (np.array([np.nan, 0.5, 1.0], np.float32), [0, 128, 255]),
    ],
)
def test_deep_modes_by_their_range(values, expected):
    picture = Image.fromarray(values.repeat(4)[None].repeat(12, 0))
    assert picture.mode in ("I", "F")
    assert pixels(load_rgb(picture))[0, [0, 4, 8], 0].tolist() == expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (16, 16), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert abs(pixels(load_rgb(data))[0, 0] - [250, 0, 0]).max() < 6
    later = Image.open(io.BytesIO(data))
    later.seek(2)
    assert abs(pixels(load_rgb(later))[0, 0] - [250, 0, 0]).max() < 6


def test_exif_rotation():
    picture = Image.new("RGB", (32, 16), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 16, 16))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    loaded = load_rgb(encoded(picture, "JPEG", exif=exif, quality=95))
    assert loaded.size == (16, 32)
    assert pixels(loaded)[4].min() > 240 and pixels(loaded)[28].max() < 15


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_turns_nothing():
    data = encoded(gradient(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff garbage")
    assert load_rgb(data).size == (32, 24)


def bomb(side):
    """A PNG that promises side x side pixels and holds none."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(gradient())[:200], "damaged"),
        (encoded(gradient(), "JPEG")[:300], "damaged"),
        (encoded(gradient(), "GIF")[:-60], "damaged"),
        (bomb(30), "damaged"),
        (b"", "not an image"),
        (b"this is text", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%PDF-1.4", "not an image"),
        (encoded(gradient(), "ICO"), "not an image"),
        (bomb(20000), "too large"),
        (bomb(12000), "too large"),
        (bomb(7100), "too large"),
        (encoded(Image.new("RGB", (1, 1))), "too small"),
        (encoded(Image.new("RGB", (5000, 2))), "too small"),
        (encoded(Image.new("RGB", (5000, 20))), "too narrow"),
        (12, "expected an image"),
        (None, "expected an image"),
        (np.zeros((20, 20, 3)), "expected an image"),
    ],
    ids=range(18),
)
def test_what_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        load_rgb(data)


def test_the_pixel_limit_is_exact(monkeypatch):
    assert images.MAX_PIXELS >= 8064 * 6048  # the largest photo of a telephone with 48 million pixels
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    assert load_rgb(Image.new("RGB", (40, 25))).size == (40, 25)
    with pytest.raises(ValueError, match="40 x 26"):
        load_rgb(Image.new("RGB", (40, 26)))


def test_paths_that_hold_no_image(tmp_path):
    secret = tmp_path / "picture.png"
    secret.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"picture\.png is not an image") as caught:
        load_rgb(secret)
    assert str(tmp_path) not in str(caught.value)  # an upload's place on the server is nobody's business
    for path in (tmp_path, tmp_path / "none.png", ""):
        with pytest.raises(ValueError, match="no image file"):
            load_rgb(path)
