"""The answer of a classifier, and the conditions under which it is withheld."""

from collections.abc import Mapping
from dataclasses import dataclass

from perdure.errors import InputError
from perdure.evaluation.system import System

UNKNOWN = "unknown"
"""The label of an input that belongs to no task."""


@dataclass(frozen=True)
class Withheld:
    """The answers that a classifier withholds.

    Parameters
    ----------
    unknown
        The share of known inputs that may be taken for unknown, such as 0.05; None to
        answer all inputs.
    min_probability
        The lowest probability with which a class is given as the answer; None to give all.

    Raises
    ------
    InputError
        A number is not between 0 and 1.
    """

    unknown: float | None = None
    min_probability: float | None = None

    def __post_init__(self):
        for name, value in vars(self).items():
            option = "--" + name.replace("_", "-")
            if value is not None and not 0 < value < 1:
                raise InputError(
                    f"`{option}` must be a number between 0 and 1, both excluded, got {value}."
                )

    def check(self, system: System) -> None:
        """Check that a system's answers can be withheld, before any is computed.

        Raises
        ------
        InputError
            The system has no heads, a class is called `unknown`, or a task has too few
            validation examples for the share of known inputs.
        RunError
            The tasks have stored no distances by which unknown inputs could be told.
        """
        if self == NOTHING:
            return
        if not system.backbone.has_heads:
            raise InputError(
                "`--unknown` and `--min-probability` are for classifiers with heads; the run's "
                "model is a language model, whose answers have a `score`."
            )
        if self.unknown is None:
            return
        for task, classes in system.classes.items():
            if UNKNOWN in classes:
                raise InputError(
                    f"Task `{task}` has a class `{UNKNOWN}`, which `--unknown` gives to inputs "
                    "that belong to no task. Leave `--unknown` out, or name the class differently."
                )
        system.known.check(self.unknown)


NOTHING = Withheld()
"""All answers are given."""


@dataclass(frozen=True)
class Prediction:
    """The most likely class, its probability, and the task it belongs to.

    An input that belongs to no task has the label `unknown` and an empty task. An answer
    that is too unsure has an empty label.
    """

    label: str
    probability: float
    task: str

    def but(self, withheld: Withheld, share: float) -> "Prediction":
        """Return the prediction, or what replaces it if it is withheld.

        Parameters
        ----------
        share
            The share of known inputs that are at least as far from the classes.
        """
        if withheld.unknown is not None and share <= withheld.unknown:
            return Prediction(UNKNOWN, 1 - share, "")
        lowest = withheld.min_probability
        if lowest is not None and self.probability < lowest:
            return Prediction("", self.probability, self.task)
        return self

    def named(self, names: Mapping[str, str]) -> dict[str, object]:
        """Return the prediction as the cells of a table row, under the given column names."""
        return {name: getattr(self, key) for key, name in names.items()}
