"""Tasks of small noisy images that differ in colour."""

import numpy as np
from datasets import Dataset
from PIL import Image

from perdure import Task, TaskStream


def stream() -> TaskStream:
    """Return two tasks with the same classes."""
    tasks = []
    for number, name in enumerate("ab"):
        splits = (rows(16, number), rows(8, number + 10), rows(8, number + 20))
        tasks.append(Task(name, ("dark", "light"), *splits))
    return TaskStream("pictures", tuple(tasks), "domain")


def rows(count: int, seed: int) -> Dataset:
    """Return images of 16 × 16 pixels, dark and light by turns."""
    rng = np.random.default_rng(seed)
    labels = [number % 2 for number in range(count)]
    images = []
    for label in labels:
        pixels = rng.integers(0, 80, (16, 16, 3), dtype=np.uint8) + np.uint8(150 * label)
        images.append(Image.fromarray(pixels))
    return Dataset.from_dict({"image": images, "label": labels})
