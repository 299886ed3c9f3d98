"""Optuna's TPE sampler behind an ask-and-tell interface. No other module uses Optuna directly."""

import importlib
import warnings
from collections.abc import Mapping
from types import ModuleType

from perdure.errors import InputError


class TPE:
    """A search for the values of named parameters that maximise a score.

    Parameters
    ----------
    ranges
        The lowest and highest value of each parameter.
    optuna
        The `optuna` package, which `needed` imports.
    logarithmic
        True to search on a logarithmic scale.
    startup
        The number of random candidates to try before TPE uses their scores.
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
        # Otherwise, Optuna would log each trial to the terminal, between our progress lines.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            # Optuna warns that `multivariate` is experimental.
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
        # `study.ask` is given all distributions, so that TPE samples the parameters jointly.
        self._space = {}
        for name, (low, high) in ranges.items():
            distribution = optuna.distributions.FloatDistribution(low, high, log=logarithmic)
            self._space[name] = distribution
        self._create_trial = optuna.trial.create_trial
        self._trial = None

    def ask(self) -> dict[str, float]:
        """Return the next candidate, which maps parameter names to values."""
        self._trial = self._study.ask(self._space)
        return self._trial.params

    def tell(self, score: float) -> None:
        """Record the score of the candidate that `ask` returned last."""
        self._study.tell(self._trial, score)

    def add(self, candidate: Mapping[str, float], score: float) -> None:
        """Record a candidate that did not come from `ask`, such as one from an earlier process."""
        trial = self._create_trial(
            params=dict(candidate),
            distributions=self._space,
            value=score,
        )
        self._study.add_trial(trial)


def needed(package: str, needed_by: str, instead: str = "") -> ModuleType:
    """Import and return a package that is installed by the optional extra `search`.

    Raises
    ------
    InputError
        The package is not installed. The message starts with `needed_by` and ends with `instead`.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        advice = f"pip install 'perdure[search]'{instead}"
        raise InputError(f"{needed_by} needs `{package}`: {advice}.") from error
