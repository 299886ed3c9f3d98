"""Networks that are trained from scratch: their outputs by hand, their initial values,
and the outputs that the classes of a task belong to.
"""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from perdure import Backbone, BackboneError, InputError, Network, RunError
from perdure.data.images import as_rows
from perdure.data.task import TaskRows
from perdure.models.examples import Batch

DIGITS = tuple("0123456789")


def network(**settings) -> Network:
    usual = {"network": "mlp", "classes": DIGITS, "widths": (5, 4), "image_size": 6}
    return Network(**(usual | settings))


def rows(count: int, labels: list[int] | None = None, size: int = 6) -> Dataset:
    pixels = np.random.default_rng(1).integers(0, 256, (count, size, size), dtype=np.uint8)
    data = as_rows([Image.fromarray(image) for image in pixels])
    return data if labels is None else data.add_column("label", labels)


def weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().astype(float) for name, value in model.named_parameters()}


@torch.no_grad()
def test_the_outputs_of_a_perceptron_are_those_by_hand():
    model = network()
    examples = model.prepare([TaskRows("some", rows(3))])
    batch = examples.batch([0, 1, 2])
    w = weights(model.model)
    pixels = np.stack([image.numpy() for image in examples.inputs]) / 255
    x = pixels.reshape(3, 36)
    for layer in ("hidden.0", "hidden.1"):
        x = np.maximum(x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"], 0)
    assert np.allclose(model.features(batch), x, atol=1e-6)
    x = x @ w["output.weight"].T + w["output.bias"]
    assert np.allclose(model(batch), x, atol=1e-6)
    assert model.width == 4 and model(batch).shape == (3, 10)


@torch.no_grad()
def test_the_outputs_of_a_convolutional_network_are_those_by_hand():
    model = network(network="cnn", filters=(2,), widths=())
    examples = model.prepare([TaskRows("some", rows(1))])
    batch = examples.batch([0])
    w = weights(model.model)
    image = examples.inputs[0].numpy()[0] / 255
    padded = np.pad(image, 1)
    pooled = np.zeros((2, 3, 3))
    for number in range(2):
        values = np.zeros((6, 6))
        for row in range(6):
            for column in range(6):
                window = padded[row : row + 3, column : column + 3]
                values[row, column] = (window * w["convolutions.0.weight"][number, 0]).sum()
        values = np.maximum(values + w["convolutions.0.bias"][number], 0)
        pooled[number] = values.reshape(3, 2, 3, 2).max((1, 3))
    outputs = w["output.weight"] @ pooled.ravel() + w["output.bias"]
    assert np.allclose(model(batch)[0], outputs, atol=1e-6)


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first = network(seed=3).model.state_dict()
    torch.manual_seed(6)
    second = network(seed=3).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["output.weight"], network(seed=4).model.output.weight)
    # NumPy's frozen generator: these numbers are the same everywhere, and must stay so,
    # because the folders of runs contain only changes of them.
    expected = np.random.RandomState(3).uniform(-1 / 6, 1 / 6, (5, 36))
    assert np.allclose(first["hidden.0.weight"], expected, atol=1e-7)
    assert first["hidden.1.weight"].abs().max() <= 5**-0.5
    assert first["hidden.1.bias"].abs().max() > 0


def test_targets_are_outputs_and_labels_are_within_the_task():
    model = network()
    examples = model.encode(
        [
            TaskRows("odd", rows(3, [0, 1, -1]), ("3", "1")),
            TaskRows("big", rows(2, [1, 0]), ("8", "9")),
        ]
    )
    assert list(examples.labels) == [0, 1, -1, 1, 0]
    batch = examples.batch([4, 0, 1, 2, 3])
    assert batch.targets.tolist() == [8, 3, 1, -1, 9]
    assert batch.tasks == ("big", "odd", "odd", "odd", "big")
    answers = model.read(model(batch), batch)
    expected = torch.nn.functional.cross_entropy(model(batch)[[0, 1]], torch.tensor([8, 3]))
    some = examples.batch([4, 0])
    assert torch.allclose(model.losses(some).mean(), expected)
    assert answers.values.shape == (5, 10) and answers.rows.tolist() == [0, 1, 2, 3, 4]


@torch.no_grad()
def test_the_classes_of_a_task_are_ranked_in_its_order():
    model = network()
    batch = model.prepare([TaskRows("some", rows(4))]).batch([0, 1, 2, 3])
    ranked = model.rank(batch, {"a": ("7", "2"), "b": DIGITS})
    log_p = model(batch).log_softmax(1)
    assert torch.equal(ranked["a"], log_p[:, [7, 2]]) and torch.equal(ranked["b"], log_p)


def test_images_are_read_in_the_size_and_the_colours_of_the_network():
    picture = Image.new("RGB", (12, 12), (255, 0, 0))
    data = as_rows([picture, picture])
    grey = network().prepare([TaskRows("some", data)])
    assert grey.inputs[0].shape == (1, 6, 6) and int(grey.inputs[0][0, 0, 0]) == 76
    # Equal images are decoded once.
    assert grey.inputs[0] is grey.inputs[1]
    coloured = network(channels=3).prepare([TaskRows("some", data)])
    pixels = coloured.batch([0]).inputs["pixels"]
    assert pixels.shape == (1, 3, 6, 6) and pixels[0, :, 2, 2].tolist() == [1, 0, 0]


def test_settings_make_the_same_network_again():
    model = network(network="cnn", filters=(2, 3), channels=3, seed=9)
    again = Network(**model.settings)
    assert again.settings == model.settings
    before = model.model.state_dict()
    after = again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert network(network="cnn", image_size=8).settings["filters"] == [32, 64]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": ("a",)}, "at least two different `classes`"),
        ({"classes": ("a", "a")}, "at least two different `classes`"),
        ({"filters": (3,)}, "an `mlp` has none"),
        ({"network": "cnn", "filters": (3, 3, 3)}, "too many for `image_size: 6`"),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        network(**settings)


def test_what_a_network_cannot_do(tmp_path):
    model = network()
    assert isinstance(model, Backbone) and not model.has_heads and not model.writes
    with pytest.raises(InputError, match="reads images, but the examples are texts"):
        model.prepare([TaskRows("texts", Dataset.from_dict({"text": ["a"], "label": [0]}), ("1",))])
    with pytest.raises(BackboneError, match="cannot write text"):
        model.generate(Batch({}))
    with pytest.raises(RunError, match="nothing to export it to"):
        model.save(tmp_path, [], [])
