"""Optuna's TPE, asked for candidates and told their scores. No other file knows Optuna."""

import importlib
import warnings
from collections.abc import Mapping
from types import ModuleType

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
        The number of random candidates before TPE learns from scores.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float, float]],
        seed: int,
        *,
        optuna: ModuleType,
        logarithmic: bool = False,
        startup: int = 10,
    ):
        # Optuna reports each trial on the terminal, between the lines of our own progress.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            # Optuna calls `multivariate` experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=startup,
                multivariate=True,
            )
        self._study = optuna.create_study(
            direction="maximize",
            sampler=sampler,
        )
        # `study.ask` takes the distributions at once, so that TPE sees all numbers together.
        self._space = {}
        for name, (low, high) in ranges.items():
            distribution = optuna.distributions.FloatDistribution(low, high, log=logarithmic)
            self._space[name] = distribution
        self._create_trial = optuna.trial.create_trial
        self._trial = None

    def ask(self) -> dict[str, float]:
        """Return the next candidate."""
        self._trial = self._study.ask(self._space)
        return self._trial.params

    def tell(self, score: float) -> None:
        """Learn from the score of the last candidate that was asked for."""
        self._study.tell(self._trial, score)

    def add(self, candidate: Mapping[str, float], score: float) -> None:
        """Learn from the score of another candidate, such as one of an earlier process."""
        trial = self._create_trial(
            params=dict(candidate),
            distributions=self._space,
            value=score,
        )
        self._study.add_trial(trial)


def needed(package: str, needed_by: str, instead: str = "") -> ModuleType:
    """Import a package of the extra `search`.

    Raises
    ------
    InputError
        The package is not installed. The message says what needs it, and what to do `instead`.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        advice = f"pip install 'perdure[search]'{instead}"
        raise InputError(f"{needed_by} needs `{package}`: {advice}.") from error
