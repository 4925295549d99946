"""Orientation, transparency, depth and polarity: a picture is read as a viewer shows it."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from suture.runtime.data.library_warnings import counted_warnings
from suture.runtime.data.pictures import picture_size, read_mask, read_picture
from suture.runtime.errors import DataError

GREY = (np.arange(48 * 48).reshape(48, 48) // 9 % 256).astype(np.uint8)
GREY[4:20, 4:10] = 255  # lopsided, so that turning and mirroring show
COLOUR = np.dstack([GREY, GREY[::-1], GREY.T])
BACK = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""By EXIF's orientation the transposition of Pillow that undoes it."""


def as_read(path, channels=1, size=48):
    return read_picture(path, size, channels).numpy().astype(int)


def turned(orientation):
    """What a camera stores: the upright picture turned, and EXIF that says how to turn it back."""
    image, exif = Image.fromarray(GREY), Image.Exif()
    if BACK[orientation] is not None:
        image = image.transpose(Image.Transpose(BACK[orientation]))
    exif[0x0112] = orientation
    return image, exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg", "avif"])
def test_a_turned_picture_and_its_mask_are_upright(tmp_path, orientation, ending):
    """Oracle: the picture that was turned; JPEG and its like move values a little."""
    image, exif = turned(orientation)
    path = tmp_path / f"a.{ending}"
    image.save(
        path,
        exif=exif,
        **({"lossless": True} if ending == "webp" else {"quality": 98} if ending in ("jpg", "avif") else {}),
    )
    assert np.abs(as_read(path)[0] - GREY).mean() < 3
    if ending in ("png", "tif"):
        mask, _ = turned(orientation)
        mask.point(lambda value: 255 * (value == 255)).save(path, exif=exif)
        assert np.array_equal(read_mask(path), GREY == 255)


def test_a_size_is_that_of_the_upright_picture(tmp_path):
    """Oracle: width and height as they are seen, whatever the header says; in a PNG also behind the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.tif"):
        Image.fromarray(GREY[:30]).save(tmp_path / name, exif=exif)
        assert picture_size(tmp_path / name) == (30, 48)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    late = tmp_path / "late.png"
    late.write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    assert picture_size(late) == (30, 48)
    assert np.array_equal(as_read(late), as_read(tmp_path / "a.png"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_black(tmp_path, mode):
    """Oracle: the picture with its transparent half set to 0, whatever colour lies there."""
    seen = np.zeros((48, 48), dtype=bool)
    seen[:, :24] = True
    if mode == "P":
        image = Image.fromarray(np.where(seen, 1, 0).astype(np.uint8), "P")
        image.putpalette([200, 200, 200, 90, 90, 90])
        image.save(tmp_path / "a.png", transparency=0)
        expected = np.where(seen, 90, 0)
    else:
        bands = [GREY] * (3 if mode == "RGBA" else 1) + [np.where(seen, 255, 0).astype(np.uint8)]
        Image.fromarray(np.dstack(bands), mode).save(tmp_path / "a.png")
        expected = np.where(seen, GREY, 0)
    assert np.abs(as_read(tmp_path / "a.png")[0] - expected).max() <= 1


@pytest.mark.parametrize("scale", [16, 257], ids=["12 bit in 16", "16 bit"])
@pytest.mark.parametrize("kind", ["png", "tif", "deflate.tif", "planes.tif", "ppm"])
def test_deep_colour_is_scaled_by_its_own_range(tmp_path, kind, scale):
    """Oracle: the 8-bit picture times 16 or 257, as deep greys are scaled; Pillow alone cuts the lower 8 bits off."""
    deep = COLOUR.astype(np.uint16) * scale
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        write_deep_png(path, deep)
    elif kind == "ppm":
        path.write_bytes(b"P6\n48 48\n65535\n" + deep.astype(">u2").tobytes())
    elif kind == "planes.tif":
        tifffile.imwrite(path, deep.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    else:
        tifffile.imwrite(path, deep, photometric="rgb", compression="zlib" if "deflate" in kind else None)
    assert np.abs(as_read(path, 3) - COLOUR.transpose(2, 0, 1)).max() <= 1


@pytest.mark.parametrize("scale", [16, 257], ids=["12 bit in 16", "16 bit"])
@pytest.mark.parametrize("ending", ["j2k", "jp2"])
def test_deep_colour_in_jpeg_2000_is_scaled_by_its_own_range(tmp_path, ending, scale):
    """Oracle: as above; the file is written without loss, as a bare code stream and in its box."""
    encode_array = pytest.importorskip("openjpeg.utils").encode_array
    deep = COLOUR.astype(np.uint16) * scale
    path = tmp_path / f"a.{ending}"
    path.write_bytes(encode_array(deep, photometric_interpretation=1, codec_format=int(ending == "jp2")))
    assert np.abs(as_read(path, 3) - COLOUR.transpose(2, 0, 1)).max() <= 1


def write_deep_png(path, pixels):
    """A PNG of 16 bits a sample, which Pillow does not write."""
    import struct
    import zlib

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_a_deep_picture_with_transparency_is_scaled_by_what_is_seen(tmp_path):
    """Oracle: what lies under transparent pixels, brighter than all else, sets no range."""
    opacity = np.full((48, 48), 65535, dtype=np.uint16)
    opacity[:, 40:] = 0
    deep = GREY.astype(np.uint16) * 16
    deep[:, 40:] = 65535
    for channels in (2, 4):
        write_deep_png(tmp_path / "a.png", np.dstack([deep] * (channels - 1) + [opacity]))
        expected = GREY.astype(int).copy()
        expected[:, 40:] = 0
        assert np.abs(as_read(tmp_path / "a.png")[0] - expected).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_is_turned_at_any_depth(tmp_path, dtype):
    """Oracle: the negative; tifffile writes what the tag says."""
    tifffile.imwrite(tmp_path / "a.tif", (255 - GREY.astype(int)).astype(dtype), photometric="miniswhite")
    assert np.abs(as_read(tmp_path / "a.tif")[0] - GREY).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_by_name(tmp_path, value):
    pixels = GREY.astype(np.float32)
    pixels[3, 3] = value
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(
        DataError, match="a.tif: ValueError: some of its pixels are not finite numbers; remove"
    ):
        read_picture(tmp_path / "a.tif", 48, 1)


@pytest.mark.parametrize("kind", ["gif", "tif", "webp", "png"])
def test_of_several_frames_the_first_is_read_and_that_is_said(tmp_path, kind):
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(
        tmp_path / f"a.{kind}",
        save_all=True,
        append_images=[second],
        **({"lossless": True} if kind == "webp" else {}),
    )
    with counted_warnings() as said:
        assert np.abs(as_read(tmp_path / f"a.{kind}")[0] - GREY).max() <= 1
    assert said.notes() == ["1 pictures: hold several pages or frames; the first one is used"]


def test_no_other_format_is_decoded_whatever_it_is_called(tmp_path):
    """Oracle: EPS, which Pillow hands to Ghostscript; it is refused by its content."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DataError, match="a.jpg: it is none of the formats that are read"):
        read_picture(tmp_path / "a.jpg", 48, 1)


def test_a_deep_grey_png_may_name_one_value_as_transparent(tmp_path):
    """Oracle: by hand: that value is background and sets no range, as in 16-bit pictures with an opacity."""
    import struct
    import zlib

    deep = GREY.astype(np.uint16) * 16
    deep[:, 40:] = 65535
    Image.fromarray(deep).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    chunk, place = b"tRNS" + struct.pack(">H", 65535), content.index(b"IDAT") - 4
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:place] + chunk + content[place:])
    expected = GREY.astype(int).copy()
    expected[:, 40:] = 0
    assert np.abs(as_read(tmp_path / "a.png")[0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.uint32, 2**24), (np.int32, 2**23), (np.int16, 100), (np.int8, 1)]
)
def test_whole_numbers_of_any_depth_and_sign_are_scaled_by_their_own_range(tmp_path, dtype, scale):
    """Oracle: the picture that was written; signed ones reach below zero."""
    values = GREY.astype(np.int64) - (0 if dtype == np.uint32 else 128)
    tifffile.imwrite(tmp_path / "a.tif", (values * scale).astype(dtype))
    assert np.abs(as_read(tmp_path / "a.tif")[0] - GREY).max() <= 1


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint64])
def test_a_tiff_of_a_depth_that_is_not_read_is_refused_as_what_it_is(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(dtype))
    with pytest.raises(DataError, match="a.tif: it is a TIFF of a depth or of channels that are not read"):
        read_picture(tmp_path / "a.tif", 48, 1)


def test_a_file_that_is_empty_is_called_so(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="a.png: it is empty; remove or replace it"):
        read_picture(tmp_path / "a.png", 48, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "JPEG2000"])
def test_a_picture_called_dcm_is_what_its_content_says(tmp_path, kind):
    """Oracle: the same file under its own name, in a walk and in the reader."""
    from suture.runtime.data.folder import walk

    for name in ("a.dcm", "a.own"):
        Image.fromarray(GREY).save(tmp_path / name, format=kind)
    (tmp_path / "a.own").rename(tmp_path / "b.jpg")
    found = walk(tmp_path)
    assert len(found.pictures) == 2 and not found.dicom
    assert np.array_equal(as_read(tmp_path / "a.dcm"), as_read(tmp_path / "b.jpg"))
    assert picture_size(tmp_path / "a.dcm") == (48, 48)


@pytest.mark.parametrize("name", ["a.dcm", "a.png"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>404</html>", "whatever its name says"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
            "it is a pointer of Git LFS: fetch .* by git lfs pull",
        ),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(tmp_path, name, content, reason):
    pytest.importorskip("pydicom")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: {reason}|{name}: it is .*{reason}"):
        read_picture(tmp_path / name, 48, 1)
