"""Random texts and images, on which two models can be compared without any data."""

import math

import torch
from datasets import Dataset
from PIL import Image
from torch.nn import functional as F

from perdure.data.task import TaskRows
from perdure.models.backbone import Backbone
from perdure.models.examples import Examples

TEXTS = 1024
"""The number of random texts."""
LONGEST = 24
"""The maximum number of tokens that are drawn for a random text."""
IMAGES = 512
"""The number of random images."""
SIDE = 64
"""The height and width of a random image in pixels."""


def random_inputs(backbone: Backbone) -> Examples:
    """Return random inputs of the kind that the model reads; always the same ones."""
    if backbone.kind == "image":
        rows = Dataset.from_dict({"image": _images()})
    else:
        rows = Dataset.from_dict({"text": _texts(backbone)})
    # A text of tokens that decode to nothing, such as a lone byte, may have no tokens.
    return backbone.prepare([TaskRows("", rows)], allow_empty=True)


def _texts(backbone: Backbone) -> list[str]:
    """Return texts of random tokens from the tokenizer's vocabulary."""
    tokenizer = backbone.processor
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, LONGEST + 1, (TEXTS,), generator=generator)
    texts = []
    for length in lengths.tolist():
        places = torch.randint(len(ordinary), (length,), generator=generator)
        tokens = [ordinary[place] for place in places.tolist()]
        texts.append(tokenizer.decode(tokens))
    return texts


def _images() -> list[Image.Image]:
    """Return grids of random colours, from coarse to fine, which are enlarged smoothly."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(IMAGES):
        exponent = math.log2(SIDE) * torch.rand((), generator=generator).item()
        cells = int(2**exponent)
        grid = torch.rand(1, 3, cells, cells, generator=generator)
        colours = F.interpolate(grid, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)
        pixels = (255 * colours[0]).byte().permute(1, 2, 0)
        images.append(Image.fromarray(pixels.numpy()))
    return images
