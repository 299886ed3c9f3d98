"""Images in the form that models read: upright, RGB, with 8 bits per channel.

Every image goes through `read_image`, both in training and in prediction, so a model sees
the same pixels wherever an image comes from.
"""

import hashlib
import io
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image, ImageFile

from perdure.errors import DataError

LISTED = 10
"""The maximum number of unreadable images that an error lists; any others are only counted."""

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")

# Formats whose 16-bit samples Pillow returns as 32-bit integers.
SIXTEEN_BITS_AS_INTEGERS = ("PPM", "PNG")

# An EPS file is a program, which Pillow runs in Ghostscript; it cannot decode the others itself.
REFUSED_FORMATS = ("EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")

ORIENTATION = 0x0112  # the EXIF tag

# The transposition that makes an image upright, by the value of the tag; 1 means already upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class EncodedImage(TypedDict):
    """An image in an undecoded column of `datasets`: the content of a file, or its path."""

    bytes: bytes | None
    path: str | None


class _Refused(Exception):
    """An image cannot be read. The message is the rest of a sentence that starts with its name."""


def read_image(source: object, name: str | None = None) -> Image.Image:
    """Return an image in the form that models read: upright, RGB, with 8 bits per channel.

    The image is rotated according to its EXIF orientation. For an animation, the first
    frame is read, or the current frame if `source` is a Pillow image. Transparent pixels
    are blended with a white background. 16-bit grey values are divided by 257, and floats
    in [0, 1] are multiplied by 255.

    Parameters
    ----------
    source
        A path, the bytes of a file, a Pillow image, an array that Pillow accepts, or a
        mapping with `bytes` or `path`, as in an undecoded column of `datasets`.
    name
        The name of the image in error messages; by default, its path.

    Raises
    ------
    DataError
        The image is missing, empty, damaged or truncated, is not a regular file or not an
        image, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or has samples of an
        unknown range: 32-bit integers, or floats outside [0, 1].

    Examples
    --------
    >>> read_image(np.array([[0, 32896, 65535]], dtype=np.uint16)).getpixel((1, 0))
    (128, 128, 128)
    >>> read_image(Image.new("I", (2, 2), 70000))
    Traceback (most recent call last):
    perdure.errors.DataError: The image contains 32-bit integers, whose range is not known. ...
    """
    if isinstance(source, Mapping):
        source, path = _of_column(source)
        name = name or path
    if name is None and isinstance(source, str | Path):
        name = f"`{source}`"
    name = name or "The image"
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd metadata, which is harmless, and about sizes, which
            # are checked here. If warnings were turned into errors, a good image would
            # become unreadable.
            warnings.simplefilter("ignore")
            return _read(source)
    except _Refused as refusal:
        raise DataError(f"{name} {refusal}") from refusal.__cause__
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has {_too_many()}") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image that Pillow can read.") from error
    except Exception as error:  # Pillow's decoders raise all kinds of errors for damaged files
        raise DataError(f"{name} is damaged or truncated ({error}).") from error


def _of_column(value: Mapping[str, object]) -> tuple[object, str | None]:
    """Return the image and its name, from a mapping with `bytes` or `path`."""
    path = value.get("path")
    name = f"`{path}`" if path else None
    content = value.get("bytes")
    # If both are given, the path only names the image: the file may be on another machine.
    return (path if content is None else content), name


def _read(source: object) -> Image.Image:
    if isinstance(source, Image.Image):
        return _normalised(source)
    if isinstance(source, np.ndarray):
        return _normalised(_of_array(source))
    if isinstance(source, bytes | bytearray):
        if not source:
            raise _Refused("is empty.")
        return _normalised(_open(io.BytesIO(source)))
    if isinstance(source, str) and "://" in source:
        raise _Refused("is a URL. Download the image, and give the path of the file.")
    if isinstance(source, str | Path):
        with _open_file(Path(source)) as file:
            return _normalised(_open(file))
    raise _Refused(
        f"is not an image, a path or an array, but has the type `{type(source).__name__}`."
    )


def _open(file: BinaryIO | io.BytesIO) -> Image.Image:
    return Image.open(file, formats=_formats())


@cache
def _formats() -> list[str]:
    Image.init()  # before this call, Pillow knows only the most common formats
    return [name for name in Image.ID if name not in REFUSED_FORMATS]


@cache
def endings() -> frozenset[str]:
    """Return the file extensions of images, in lower case and with the leading dot."""
    formats = _formats()
    known = Image.registered_extensions()
    return frozenset(ending for ending, name in known.items() if name in formats)


def _of_array(pixels: np.ndarray) -> Image.Image:
    try:
        return Image.fromarray(pixels)
    except TypeError as error:
        given = f"{pixels.dtype} in the shape {pixels.shape}"
        raise _Refused(
            f"is an array of {given}. Give 8-bit integers as height × width × 3, or height × width."
        ) from error


def _open_file(path: Path) -> BinaryIO:
    """Open a file for reading, and raise `_Refused` if it is not a regular file.

    Opening a pipe could block forever, and reading a device might never end.
    """
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
    except OSError as error:
        # For instance a loop of links, a file without read permission, or a name that is too long.
        raise _Refused(f"cannot be opened ({error.strerror}).") from error
    except ValueError as error:  # a character that no path can contain
        raise _Refused("is not a path.") from error


def _normalised(image: Image.Image) -> Image.Image:
    width, height = image.size
    if not width * height:
        raise _Refused("has no pixels.")
    # Checked before decoding, because a small file can contain an image that fills the memory.
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise _Refused(f"has {width} × {height} pixels, {_too_many()}")
    _load(image)
    orientation = _orientation(image)
    pixels = _rgb(image)
    upright = UPRIGHT.get(orientation or 1)
    return pixels if upright is None else pixels.transpose(upright)


def _load(image: Image.Image) -> None:
    """Decode an image, unless it is already decoded.

    If Pillow knows the name of an uncompressed TIFF file, it maps the file into memory,
    and swaps width and height if the orientation of the image does so (seen in Pillow
    13.0). The name is therefore hidden from Pillow.
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
    """Return the EXIF orientation, or None if it is missing or the metadata is damaged."""
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # the EXIF parser also raises all kinds of errors
        return None


def _rgb(image: Image.Image) -> Image.Image:
    as_integers = image.mode == "I" and image.format in SIXTEEN_BITS_AS_INTEGERS
    if image.mode in SIXTEEN_BITS or as_integers:
        # Pillow's conversion to RGB would clip the values at 255.
        return _grey(np.asarray(image, dtype=np.float32) / 65535)
    if image.mode == "I":
        raise _Refused(
            "contains 32-bit integers, whose range is not known. Save it with 8 or 16 bits."
        )
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # this also refuses NaN
            raise _Refused(
                "contains floats that are not all in [0, 1]. "
                "Scale them, or save it with 8 or 16 bits."
            )
        return _grey(values)
    if image.mode == "La":  # "LA" is the only mode to which Pillow can convert it
        image = image.convert("LA")
    if image.has_transparency_data:
        # `convert("RGB")` alone would reveal the colours that transparent pixels happen to have.
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    try:
        return image.convert("RGB")
    except (ValueError, ImportError) as error:
        raise _Refused(
            f"has the mode `{image.mode}`, which Pillow cannot convert. Save it as RGB."
        ) from error


def _grey(values: np.ndarray) -> Image.Image:
    """Return an RGB image of grey values in [0, 1]."""
    levels = np.rint(values * 255).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB")


# -- columns of a data set


def image_column(data: Dataset, column: str, source: str) -> Dataset:
    """Return the data set with one column converted to images.

    The column may contain paths, encoded images, or images. The path of an image that
    does not come from a file is set to `source` and its row number, as a name for error
    messages.

    Raises
    ------
    DataError
        A row has no image, or the column contains something else.

    Examples
    --------
    >>> data = image_column(Dataset.from_dict({"photo": [b"GIF89a"]}), "photo", "photos.parquet")
    >>> undecoded(data, "photo")[0]["path"]
    'photos.parquet, row 1'
    """
    try:
        encoded = data.cast_column(column, ImageColumn(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        kind = data.features[column]
        raise DataError(
            f"`{source}`: column `{column}` contains `{getattr(kind, 'dtype', kind)}`, "
            "but should contain images or paths."
        ) from error
    table = cast("pa.Table", encoded.with_format("arrow")[:])

    chunks = []
    rows_before = 0
    for chunk in table[column].chunks:
        chunks.append(_with_paths(chunk, rows_before, column, source))
        rows_before += len(chunk)
    images = pa.chunked_array(chunks, ImageColumn.pa_type)

    features = Features({**data.features, column: ImageColumn()})
    table = table.set_column(data.column_names.index(column), column, images)
    # `datasets` reads column types from the metadata of the schema.
    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    # The default fingerprint would be a hash of all images.
    origin = f"{data._fingerprint} {column} {source}"
    fingerprint = hashlib.sha256(origin.encode()).hexdigest()[:16]
    return Dataset(table, fingerprint=fingerprint)


def _with_paths(
    chunk: pa.StructArray, rows_before: int, column: str, source: str
) -> pa.StructArray:
    """Assign a path, for error messages, to those images in a chunk that are not in files."""
    contents, paths = chunk.flatten()
    names = paths.to_pylist()
    for index, is_file in enumerate(contents.is_null().to_pylist()):
        row = rows_before + index + 1
        if not is_file:
            names[index] = f"{source}, row {row}"
        elif not names[index]:
            raise DataError(f"`{source}`: row {row} has no image in column `{column}`.")
    # The encoded images, which may take up most of the memory, are not copied.
    arrays = [contents, pa.array(names, pa.string())]
    return pa.StructArray.from_arrays(arrays, names=["bytes", "path"])


def as_rows(inputs: Sequence[object]) -> Dataset:
    """Return a data set with an `image` column, from images of any kind that `read_image` accepts.

    Files are read lazily. An image in memory is stored in its current state, even if it
    was loaded from a file. It is encoded as PNG, which is lossless.

    Raises
    ------
    DataError
        An image in memory cannot be read.
    """
    rows: list[EncodedImage] = []
    for number, source in enumerate(inputs, start=1):
        name = f"image {number}"
        if isinstance(source, str | Path):
            rows.append({"bytes": None, "path": str(source)})
        elif isinstance(source, bytes | bytearray):
            rows.append({"bytes": bytes(source), "path": name})
        else:
            file = io.BytesIO()
            image = read_image(source, f"Image {number}")
            # The fastest compression, because the bytes stay in memory and are soon decoded.
            image.save(file, "PNG", compress_level=1)
            rows.append({"bytes": file.getvalue(), "path": name})
    features = Features({"image": ImageColumn()})
    return Dataset.from_dict({"image": rows}, features=features)


def undecoded(data: Dataset, column: str = "image") -> Any:
    """Return the images in a column without decoding them, as a sequence of `EncodedImage`.

    The images are read one at a time. The return type is `Any`, because columns of
    `datasets` have no type annotations.
    """
    images = data.select_columns([column])
    images = images.cast_column(column, ImageColumn(decode=False))
    return images[column]


def unreadable(data: Dataset, where: str) -> Iterator[str]:
    """Yield an error message for each image of a split that cannot be read.

    All images are decoded, one at a time, because only decoding reveals truncated images.
    """
    encoded: Sequence[EncodedImage] = undecoded(data)
    for row, image in enumerate(encoded, start=1):
        path = image["path"]
        name = f"`{path}`" if path else f"{where}, row {row},"
        try:
            read_image(image, name)
        except DataError as error:
            yield str(error)


def content(image: EncodedImage) -> bytes:
    """Return the bytes of an encoded image, reading its file if necessary.

    Raises
    ------
    DataError
        The file is missing, empty, unreadable, or not a regular file.
    """
    if image["bytes"] is not None:
        return image["bytes"]
    path = Path(cast("str", image["path"]))
    try:
        with _open_file(path) as file:
            return file.read()
    except _Refused as refusal:
        raise DataError(f"`{path}` {refusal}") from refusal.__cause__
