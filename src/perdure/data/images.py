"""Images as the models read them: upright, in RGB, with eight bits a channel.

Every image goes through `read_image`, in training as in prediction, so that a model sees the same
pixels wherever an image comes from.
"""

import hashlib
import io
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image, ImageFile

from perdure.errors import DataError

LISTED = 10
"""The number of unreadable images that an error names; of the others it says how many there are."""

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")

# Pillow gives the samples of these formats, which have 16 bits, as 32-bit integers.
SIXTEEN_BITS_AS_INTEGERS = ("PPM", "PNG")

# An EPS file is a program, on which Pillow runs Ghostscript; the others Pillow knows by name only.
REFUSED_FORMATS = ("EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Refused(Exception):
    """An image is not read; the message goes on where its name ends."""


def read_image(source: Any, name: str | None = None) -> Image.Image:
    """Return an image as the models read it: upright, in RGB, with eight bits a channel.

    The image is turned as its EXIF orientation says. Of an animation the first frame is read, or, of
    an object of Pillow, the frame that it is at. What is transparent is shown on white. Grey values
    of 16 bits are divided by 257, and floats are multiplied by 255 if all of them are in [0, 1].

    Parameters
    ----------
    source
        A path, the bytes of a file, an object of Pillow, an array that Pillow takes, or a mapping with
        `bytes` or `path`, as an undecoded column of `datasets` has it.
    name
        What an error calls the image; by default its path.

    Raises
    ------
    DataError
        The image is missing, empty, damaged or cut short, is no regular file or no image, has more
        pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or has samples without a known range: 32-bit
        integers, or floats outside [0, 1].

    Examples
    --------
    >>> read_image(np.array([[0, 32896, 65535]], dtype=np.uint16)).getpixel((1, 0))
    (128, 128, 128)
    >>> read_image(Image.new("I", (2, 2), 70000))
    Traceback (most recent call last):
    perdure.errors.DataError: The image holds 32-bit integers, whose range is not known. Save it with 8 or 16 bits.
    """
    if isinstance(source, Mapping):
        source, path = _of_column(source)
        name = name or path
    if name is None and isinstance(source, str | Path):
        name = f"`{source}`"
    name = name or "The image"
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, which does no harm, and of sizes, which are checked here.
            warnings.simplefilter("ignore")
            return _read(source)
    except _Refused as refusal:
        raise DataError(f"{name} {refusal}") from refusal.__cause__
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has {_too_many()}") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image that Pillow can read.") from error
    except Exception as error:  # its decoders raise all kinds of errors for damaged files
        raise DataError(f"{name} is damaged or cut short ({error}).") from error


def _of_column(value: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The image and its name, from the mapping that an undecoded column of `datasets` has."""
    path = value.get("path")
    name = f"`{path}`" if path else None
    content = value.get("bytes")
    return (path if content is None else content), name


def _read(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return _normalised(source)
    if isinstance(source, np.ndarray):
        return _normalised(_of_array(source))
    if isinstance(source, bytes | bytearray):
        if not source:
            raise _Refused("is empty.")
        return _normalised(_open(io.BytesIO(source)))
    if isinstance(source, str) and "://" in source:
        raise _Refused("is an address. Fetch the image, and give the path of its file.")
    if isinstance(source, str | Path):
        with _open_file(Path(source)) as file:
            return _normalised(_open(file))
    raise _Refused(
        f"is not an image, a path or an array, but of the type `{type(source).__name__}`."
    )


def _open(file: Any) -> Image.Image:
    return Image.open(file, formats=_formats())


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in REFUSED_FORMATS]


@cache
def endings() -> frozenset[str]:
    """The endings of the names of images, in lower case and with the dot."""
    formats = _formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in formats)


def _of_array(pixels: np.ndarray) -> Image.Image:
    try:
        return Image.fromarray(pixels)
    except TypeError as error:
        given = f"{pixels.dtype} in the shape {pixels.shape}"
        raise _Refused(
            f"is an array of {given}. Give 8-bit integers as height × width × 3, or height × width."
        ) from error


def _open_file(path: Path) -> BinaryIO:
    """Open a regular file: opening a pipe would wait for ever, and a device may never end."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _Refused("is a folder, not an image.")
        if not stat.S_ISREG(status.st_mode):
            raise _Refused("is not a file.")
        if status.st_size == 0:
            raise _Refused("is empty.")
        return path.open("rb")
    except FileNotFoundError as error:
        reason = "is a broken link." if path.is_symlink() else "does not exist."
        raise _Refused(reason) from error
    except (
        OSError
    ) as error:  # a loop of links, a file that may not be read, a name that is too long
        raise _Refused(f"cannot be opened ({error.strerror}).") from error
    except ValueError as error:  # a character that no path has
        raise _Refused("is no path.") from error


def _normalised(image: Image.Image) -> Image.Image:
    width, height = image.size
    if not width * height:
        raise _Refused("has no pixels.")
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise _Refused(f"has {width} × {height} pixels, {_too_many()}")
    _load(image)
    upright = UPRIGHT.get(_orientation(image) or 1)
    pixels = _rgb(image)
    return pixels if upright is None else pixels.transpose(upright)


def _load(image: Image.Image) -> None:
    """Decode an image, unless it is decoded already.

    Where Pillow knows the name of an uncompressed TIFF file, it maps it into memory, with width and
    height exchanged if its orientation exchanges them (seen in 13.0). It does not know the name here.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return
    name = image.filename
    image.filename = ""
    try:
        image.load()
    finally:
        image.filename = name


def _too_many() -> str:
    limit = f"{Image.MAX_IMAGE_PIXELS:,}"
    return f"more than {limit} pixels. Make it smaller, or raise `PIL.Image.MAX_IMAGE_PIXELS`."


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; damaged metadata counts as none, as it does to viewers."""
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS or (
        image.mode == "I" and image.format in SIXTEEN_BITS_AS_INTEGERS
    ):
        return _grey(np.asarray(image, dtype=np.float32) / 65535)
    if image.mode == "I":
        raise _Refused(
            "holds 32-bit integers, whose range is not known. Save it with 8 or 16 bits."
        )
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # true of NaN, too
            raise _Refused(
                "holds floats that are not all in [0, 1]. Scale them, or save it with 8 or 16 bits."
            )
        return _grey(values)
    if image.mode == "La":  # Pillow converts it to no other mode
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    try:
        return image.convert("RGB")
    except (ValueError, ImportError) as error:
        raise _Refused(
            f"has the mode `{image.mode}`, which Pillow cannot convert. Save it as RGB."
        ) from error


def _grey(values: np.ndarray) -> Image.Image:
    """An image of grey values in [0, 1]."""
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")


# -- columns of a data set


def image_column(data: Dataset, column: str, source: str) -> Dataset:
    """Return the data set with a column of images for one of paths, of encoded images, or of images.

    An image that has no file of its own is given a name for errors, `source` and its row, as its path.

    Raises
    ------
    DataError
        A row has no image, or the column holds something else.

    Examples
    --------
    >>> data = image_column(Dataset.from_dict({"photo": [b"GIF89a"]}), "photo", "photos.parquet")
    >>> undecoded(data, "photo")[0]["path"]
    'photos.parquet, row 1'
    """
    try:
        table: Any = data.cast_column(column, ImageColumn(decode=False)).with_format("arrow")[:]
    except (TypeError, ValueError, pa.ArrowException) as error:
        kind = data.features[column]
        raise DataError(
            f"`{source}`: column `{column}` holds `{getattr(kind, 'dtype', kind)}`, but should hold images or paths."
        ) from error
    chunks = []
    row = 0
    for chunk in table[column].chunks:
        encoded, paths = chunk.flatten()
        names = paths.to_pylist()
        for index, in_file in enumerate(encoded.is_null().to_pylist()):
            row += 1
            if not in_file:
                names[index] = f"{source}, row {row}"
            elif not names[index]:
                raise DataError(f"`{source}`: row {row} has no image in column `{column}`.")
        # the encoded images are not copied: they may be most of the memory
        arrays = [encoded, pa.array(names, pa.string())]
        chunks.append(pa.StructArray.from_arrays(arrays, names=["bytes", "path"]))
    features = Features({**data.features, column: ImageColumn()})
    images = pa.chunked_array(chunks, ImageColumn.pa_type)
    table = table.set_column(data.column_names.index(column), column, images)
    # by default the fingerprint is a hash of all images
    about = f"{data._fingerprint} {column} {source}"
    fingerprint = hashlib.sha256(about.encode()).hexdigest()[:16]
    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    return Dataset(table, fingerprint=fingerprint)


def as_rows(inputs: Sequence[Any]) -> Dataset:
    """Return a data set with the column `image` of images of any kind that `read_image` takes.

    Files are read when their turn comes. What is only in memory is stored as it is now, whichever file
    it once came from: as PNG, which keeps every pixel.

    Raises
    ------
    DataError
        An image in memory cannot be read.
    """
    rows = []
    for number, source in enumerate(inputs, start=1):
        if isinstance(source, str | Path):
            rows.append({"bytes": None, "path": str(source)})
        elif isinstance(source, bytes | bytearray):
            rows.append({"bytes": bytes(source), "path": f"image {number}"})
        else:
            file = io.BytesIO()
            read_image(source, f"Image {number}").save(file, "PNG", compress_level=1)
            rows.append({"bytes": file.getvalue(), "path": f"image {number}"})
    return Dataset.from_dict({"image": rows}, features=Features({"image": ImageColumn()}))


def undecoded(data: Dataset, column: str = "image") -> Any:
    """The column's images as they are stored, each a mapping with `bytes` and `path`, read one by one."""
    return data.select_columns([column]).cast_column(column, ImageColumn(decode=False))[column]


def unreadable(data: Dataset, where: str) -> Iterator[str]:
    """The reason why an image cannot be read, for each such image of a split.

    All images are decoded, one at a time: nothing less shows that one is cut short.
    """
    for row, value in enumerate(undecoded(data), start=1):
        try:
            read_image(value, f"`{value['path']}`" if value["path"] else f"{where}, row {row},")
        except DataError as error:
            yield str(error)


def content(value: Mapping[str, Any]) -> bytes:
    """The bytes of an image as it is encoded, from the table or from its file.

    Raises
    ------
    DataError
        The file is missing, empty, or no regular file, or may not be read.
    """
    if value["bytes"] is not None:
        return value["bytes"]
    path = Path(value["path"])
    try:
        with _open_file(path) as file:
            return file.read()
    except _Refused as refusal:
        raise DataError(f"`{path}` {refusal}") from refusal.__cause__
