"""Optuna's TPE, asked for candidates and told their scores: the one place that knows Optuna."""

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

from perdure.errors import InputError


class TPE:
    """A search for the highest score over numbers with names.

    Parameters
    ----------
    ranges
        The lowest and the highest value of each number.
    optuna
        The package: see `needed`.
    logarithmic
        Search on a logarithmic scale.
    startup
        The number of candidates that are random, before TPE learns from scores.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float, float]],
        seed: int,
        *,
        optuna: Any,
        logarithmic: bool = False,
        startup: int = 10,
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", optuna.exceptions.ExperimentalWarning
            )  # of `multivariate`
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True
            )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        distribution = optuna.distributions.FloatDistribution
        self._space = {
            name: distribution(low, high, log=logarithmic) for name, (low, high) in ranges.items()
        }
        self._create_trial = optuna.trial.create_trial
        self._asked: Any = None

    def ask(self) -> dict[str, float]:
        """Return the next candidate."""
        self._asked = self._study.ask(self._space)
        return self._asked.params

    def tell(self, score: float) -> None:
        """Learn from the score of the candidate that was asked for last."""
        self._study.tell(self._asked, score)

    def add(self, candidate: Mapping[str, float], score: float) -> None:
        """Learn from the score of a candidate that was not asked for, or in an earlier process."""
        trial = self._create_trial(params=dict(candidate), distributions=self._space, value=score)
        self._study.add_trial(trial)


def needed(package: str, needed_by: str, instead: str = "") -> Any:
    """Import a package of the extra `search`.

    Raises
    ------
    InputError
        It is not installed; the message says what needs it, and what can be done `instead`.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        advice = f"pip install 'perdure[search]'{instead}"
        raise InputError(f"{needed_by} needs `{package}`: {advice}.") from error
