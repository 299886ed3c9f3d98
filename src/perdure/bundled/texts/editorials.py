"""Newspaper editorials from the ground truth of VADER (MIT licence), with 5,190 sentences."""

import tarfile

from perdure.bundled.parts import packages

OUTER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
INNER = "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"


def editorials() -> list[str]:
    """Return the newspaper editorials in the VADER ground truth, one text per editorial.

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
        inner = outer.extractfile(OUTER)
        with tarfile.open(fileobj=inner) as archive:
            file = archive.extractfile(INNER)
            assert file
            lines = file.read().decode("latin-1").splitlines()
    return joined(lines)


def joined(lines: list[str]) -> list[str]:
    """Join the sentences of each editorial, in the order in which they are listed.

    Examples
    --------
    >>> joined(["1_1\\t0.4\\tIt snows.", "1_2\\t0.1\\tStay in.", "2_1\\t0\\tVote."])
    ['It snows. Stay in.', 'Vote.']
    """
    sentences: dict[str, list[str]] = {}
    for line in lines:
        number, _, sentence = line.split("\t", 2)
        editorial = number.split("_")[0]
        sentences.setdefault(editorial, []).append(sentence)
    return [" ".join(of_editorial) for of_editorial in sentences.values()]
