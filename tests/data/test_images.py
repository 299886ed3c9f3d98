"""Images are read as they are meant: the pixels given, upright,
whatever their mode and wherever they come from.
"""

import errno
import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

import perdure
from perdure import Backbone, DataError, InputError, Model, Task, TaskStream
from perdure.data.images import as_rows, endings, image_column, read_image, undecoded
from perdure.data.images import content as images_content
from perdure.data.task import TaskRows
from perdure.methods.lda import LDA
from perdure.models import encoder

SOAK = 20 if os.environ.get("PERDURE_SOAK") else 1

# What a viewer does with an image that is stored with an orientation,
# with arrays instead of Pillow.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(source):
    return np.asarray(read_image(source))


def noise(height=3, width=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# -- where an image comes from


@pytest.mark.parametrize("number", SHOWN)
@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_an_image_is_turned_as_its_orientation_says(number, form, options, tmp_path):
    stored = noise()
    content = encoded(Image.fromarray(stored), form, exif=oriented(number), **options)
    path = tmp_path / "photo"
    path.write_bytes(content)
    mapping = {"bytes": content, "path": None}
    sources = [path, str(path), content, mapping, Image.open(path), Image.open(io.BytesIO(content))]
    for source in sources:
        np.testing.assert_array_equal(pixels(source), SHOWN[number](stored))


def test_what_was_done_to_an_image_in_memory_counts(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(noise()).save(path)
    image = Image.open(path)
    image.paste((10, 20, 30), (0, 0, 5, 3))
    (row,) = undecoded(as_rows([image]))
    assert (pixels(row) == (10, 20, 30)).all()
    path.unlink()  # nor is the file asked for when it is gone
    assert (pixels(image) == (10, 20, 30)).all()


def test_the_frame_of_an_animation():
    colours = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    content = encoded(colours[0], "GIF", save_all=True, append_images=colours[1:])
    assert (pixels(content) == (255, 0, 0)).all()
    image = Image.open(io.BytesIO(content))
    image.seek(2)
    assert (pixels(image) == (0, 0, 255)).all()


def test_damaged_metadata_is_no_damaged_image(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(noise()).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff nothing")
    assert pixels(path).shape == (3, 5, 3)


# -- modes


def test_grey_values_of_16_bits_are_scaled():
    values = np.array([[0, 257, 40_000, 65_535]], dtype=np.uint16)
    right = [[[v] * 3 for v in (0, 1, 156, 255)]]
    swapped = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    portable = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    image = Image.fromarray(values)
    for source in (values, image, swapped, encoded(image, "PNG"), encoded(image, "TIFF"), portable):
        np.testing.assert_array_equal(pixels(source), right)


def test_floats_between_0_and_1_are_scaled():
    values = np.array([[0, 0.5, 1]], dtype=np.float32)
    right = [[[v] * 3 for v in (0, 128, 255)]]
    for source in (values, encoded(Image.fromarray(values), "TIFF")):
        np.testing.assert_array_equal(pixels(source), right)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.array([[0.0, 1.01]], dtype=np.float32),
            r"The image contains floats that are not all in \[0, 1\]",
        ),
        (np.array([[-0.1, 1]], dtype=np.float32), "contains floats that are not all in"),
        (np.array([[0, np.nan]], dtype=np.float32), "contains floats that are not all in"),
        (np.array([[0, np.inf]], dtype=np.float32), "contains floats that are not all in"),
        (np.array([[0, 255]], dtype=np.int32), "32-bit integers, whose range is not known"),
        (
            np.zeros((2, 2, 2, 3), dtype=np.uint8),
            r"is an array of uint8 in the shape \(2, 2, 2, 3\)",
        ),
        (np.zeros((2, 2), dtype=np.int64), "is an array of int64"),
        (np.zeros((0, 2, 3), dtype=np.uint8), "."),
        (3, "is not an image, a path or an array, but has the type `int`"),
        (None, "has the type `NoneType`"),
    ],
)
def test_what_has_no_known_range_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        read_image(values)


def test_transparency_is_shown_on_white():
    blue = np.full((1, 1, 4), (0, 0, 255, 0), dtype=np.uint8)
    half = np.full((1, 1, 4), (0, 0, 255, 128), dtype=np.uint8)
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    keyed = encoded(Image.new("RGB", (1, 1), "blue"), "PNG", transparency=(0, 0, 255))
    premultiplied = Image.fromarray(half).convert("RGBa")
    grey = Image.new("LA", (1, 1), (0, 0))
    for source in (
        Image.fromarray(blue),
        encoded(palette, "PNG", transparency=1),
        keyed,
        grey,
        grey.convert("La"),
    ):
        assert pixels(source).tolist() == [[[255, 255, 255]]]
    assert pixels(encoded(palette, "PNG")).tolist() == [[[0, 0, 255]]]  # the palette's colour
    for source in (Image.fromarray(half), premultiplied):
        np.testing.assert_allclose(pixels(source)[0, 0], (127, 127, 255), atol=1)


def test_other_colour_spaces():
    colour = (200, 100, 50)
    image = Image.new("RGB", (8, 8), colour)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    sources = [image.convert(mode) for mode in ("CMYK", "YCbCr", "HSV", "RGBX")]
    sources += [lab, encoded(lab, "TIFF"), encoded(image.convert("CMYK"), "JPEG", quality=100)]
    for source in sources:
        np.testing.assert_allclose(pixels(source)[4, 4], colour, atol=4)
    assert pixels(Image.new("1", (1, 1), 1)).tolist() == [[[255] * 3]]


def test_a_mode_that_cannot_be_converted_is_named(monkeypatch):
    def refuse(self, *arguments):
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(
        DataError, match="has the mode `LAB`, which Pillow cannot convert. Save it as RGB"
    ):
        read_image(Image.new("LAB", (2, 2)))


# -- what cannot be read


def photo(size=60):
    return encoded(Image.fromarray(noise(size, size)), "JPEG", quality=95)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "`.*x.jpg` is empty"),
        (b"text,label\na,b\n", "`.*x.jpg` is not an image that Pillow can read"),
        (photo()[:1000], "`.*x.jpg` is damaged or truncated"),
        (
            encoded(Image.fromarray(noise(60, 60)), "PNG")[:2000],
            "`.*x.jpg` is damaged or truncated",
        ),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{ } loop\n",
            "is not an image that Pillow can read",
        ),
    ],
)
def test_a_file_that_is_no_whole_image(content, message, tmp_path):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "x.jpg")


def test_what_is_no_file(tmp_path, monkeypatch):
    def forbidden(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "broken.png")
    os.symlink(tmp_path / "circle.png", tmp_path / "circle.png")
    (tmp_path / "closed.png").write_bytes(b"none")
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(DataError, match=r"closed.png` cannot be opened \(Permission denied\)"):
        read_image(tmp_path / "closed.png")
    with pytest.raises(DataError, match=r"closed.png` cannot be opened \(Permission denied\)"):
        images_content({"bytes": None, "path": str(tmp_path / "closed.png")})
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(tmp_path / "socket.png"))
        for path, message in (
            (tmp_path / "pipe.png", "pipe.png` is not a file"),
            (tmp_path / "socket.png", "socket.png` is not a file"),
            ("/dev/zero", "`/dev/zero` is not a file"),
            (tmp_path, "is a folder, not an image"),
            (tmp_path / "missing.png", "missing.png` does not exist"),
            (tmp_path / "broken.png", "broken.png` is a broken link"),
            (tmp_path / "circle.png", "circle.png` cannot be opened"),
            ("a" * 300, "cannot be opened"),
            ("a\0b", "is not a path"),
            ("https://example.org/a.png", "is a URL. Download the image"),
        ):
            with pytest.raises(DataError, match=message):
                read_image(path)


@pytest.mark.parametrize(
    "share", [0.9, 0.3]
)  # Pillow itself refuses twice its limit, and warns of less
def test_vast_images_are_refused_before_they_are_decoded(share, monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(share * 100 * 100))
    Image.new("L", (100, 100)).save(tmp_path / "vast.png")
    with pytest.raises(
        DataError, match=r"vast.png` has .*more than [39],000 pixels. Make it smaller, or raise"
    ):
        read_image(tmp_path / "vast.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert pixels(tmp_path / "vast.png").shape == (100, 100, 3)


def test_programs_and_films_are_no_images():
    assert {".png", ".jpg", ".tiff", ".webp", ".gif"} <= endings()
    assert not {".eps", ".ps", ".mpg", ".h5", ".wmf", ".csv"} & endings()


# -- columns


def test_a_column_of_images_names_its_rows():
    good, empty = encoded(Image.new("L", (2, 2)), "PNG"), b""
    data = Dataset.from_dict({"photo": [good, empty], "label": [0, 1]})
    column = image_column(data.select([1, 0]), "photo", "photos.parquet")
    assert column["label"][:] == [1, 0]
    assert [value["path"] for value in undecoded(column, "photo")] == [
        "photos.parquet, row 1",
        "photos.parquet, row 2",
    ]
    assert column[1]["photo"].size == (2, 2)
    with pytest.raises(DataError, match="`t.csv`: row 2 has no image in column `photo`"):
        image_column(Dataset.from_dict({"photo": ["a.png", None]}), "photo", "t.csv")
    with pytest.raises(
        DataError, match="`t.csv`: column `photo` contains `int64`, but should contain images"
    ):
        image_column(Dataset.from_dict({"photo": [1, 2]}), "photo", "t.csv")


# -- learning and predicting


def rows(images, labels=None):
    stored = [{"bytes": image, "path": None} for image in images]
    data = Dataset.from_dict(
        {"image": stored, "label": labels or [i % 2 for i in range(len(images))]}
    )
    return image_column(data, "image", "a.parquet")


def plain(count=6, seed=0):
    return [
        encoded(Image.fromarray(noise(16, 16, seed + i) // 2 + 120 * (i % 2)), "PNG")
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model(pico, tmp_path_factory):
    data = rows(plain())
    stream = TaskStream("photos", (Task("photos", ("dark", "light"), data, data, data),))
    output = tmp_path_factory.mktemp("images") / "run"
    return Model(perdure.run(stream, Backbone.load(pico("vit")), LDA(), output=output))


def test_all_images_are_looked_at_before_anything_is_trained(pico, tmp_path):
    def task(name, *images):
        good = rows(plain())
        return Task(
            name, ("dark", "light"), rows([*plain(), *images]), good, rows(plain()[:2] + [b"none"])
        )

    bad = [photo()[: 500 + i] for i in range(10)]
    stream = TaskStream("photos", (task("first"), task("second", *bad)))
    with pytest.raises(DataError) as error:
        perdure.run(stream, Backbone.load(pico("vit")), LDA(), output=tmp_path / "run")
    message = str(error.value)
    assert message.startswith(
        "12 images cannot be read and must be replaced or removed. `a.parquet, "
        "row 3` is not an image that Pillow "
        "can read. `a.parquet, row 7` is damaged or truncated ("
    )
    assert message.count("a.parquet") == 10 and message.endswith(" And 2 more.")
    assert not list((tmp_path / "run").glob("tasks/*"))


def test_one_image_without_a_name_is_named_by_its_row(pico, tmp_path):
    good = rows(plain())
    bad = Dataset.from_dict({"image": [{"bytes": b"none", "path": None}], "label": [0]}).cast(
        good.features
    )
    stream = TaskStream("photos", (Task("photos", ("dark", "light"), good, bad, good),))
    with pytest.raises(
        DataError,
        match="One image cannot be read.* Task `photos`, split `validation`, row 1, is not",
    ):
        perdure.run(stream, Backbone.load(pico("vit")), LDA(), output=tmp_path / "run")


def test_predictions_name_an_image_that_cannot_be_read(model, tmp_path):
    with pytest.raises(InputError, match="`image 2` is not an image that Pillow can read"):
        model.predict([plain()[0], b"none"])
    with pytest.raises(InputError, match="Image 2 is not an image, a path or an array"):
        model.predict([plain()[0], None])
    with pytest.raises(InputError, match="nowhere.png` does not exist"):
        model.add_predictions([{"image": str(tmp_path / "nowhere.png")}])


FORMS = {
    "1": ["PNG", "TIFF"],
    "L": ["PNG", "JPEG", "TIFF", "WEBP"],
    "LA": ["PNG", "TIFF"],
    "P": ["PNG", "TIFF", "GIF"],
    "RGB": ["PNG", "JPEG", "TIFF", "WEBP", "BMP"],
    "RGBA": ["PNG", "TIFF", "WEBP"],
    "CMYK": ["JPEG", "TIFF"],
    "YCbCr": ["TIFF"],
    "LAB": ["TIFF"],
    "I;16": ["PNG", "TIFF"],
    "F": ["TIFF"],
}
TURNED = ("PNG", "JPEG", "TIFF", "WEBP")  # formats with EXIF


def stored(mode, form, orientation, size):
    """The bytes of an image of random pixels."""
    random = np.random.default_rng(orientation)
    if mode == "F":
        image = Image.fromarray(random.random(size[::-1], dtype=np.float32))
    elif mode == "I;16":
        image = Image.fromarray(random.integers(0, 2**16, size[::-1], dtype=np.uint16))
    else:
        bands = len(Image.new(mode, (1, 1)).getbands())
        if mode == "1":
            image = Image.fromarray(random.random(size[::-1]) < 0.5)
        else:
            image = Image.frombytes(mode, size, random.bytes(bands * size[0] * size[1]))
        if mode == "P":
            image.putpalette(random.bytes(768))
    options = {"exif": oriented(orientation)} if form in TURNED else {}
    if mode == "P" and form != "TIFF" and orientation % 2:
        options["transparency"] = 5
    return encoded(image, form, **options)


@settings(
    max_examples=20 * SOAK,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    form=st.sampled_from([(mode, form) for mode, forms in FORMS.items() for form in forms]),
    orientation=st.integers(0, 9),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_prediction_sees_the_pixels_that_learning_saw(form, orientation, size, model, tmp_path):
    content = stored(*form, orientation, size)
    path = tmp_path / "image"
    path.write_bytes(content)
    seen = []

    def pixels(processor, images):
        seen.append([np.asarray(read_image(image)) for image in images])
        return whole(processor, images)

    whole = encoder._pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "_pixels", pixels)
        table = image_column(Dataset.from_dict({"image": [str(path)]}), "image", "a.csv")
        for data in (rows([content], [0]), table):
            model.backbone.prepare([TaskRows("photos", data)]).batch([0])
        with Image.open(path) as image:
            sources = [str(path), path, content, image, Image.open(io.BytesIO(content))]
            model.predict(sources, task="photos")
        model.add_predictions([{"image": str(path)}], task="photos")
    every = [image for images in seen for image in images]
    assert len(every) == 8
    for image in every:
        np.testing.assert_array_equal(image, every[0])
