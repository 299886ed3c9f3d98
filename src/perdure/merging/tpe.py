"""Optuna's TPE sampler behind an ask-and-tell interface. No other file uses Optuna directly."""

import importlib
import warnings
from collections.abc import Mapping
from types import ModuleType

from perdure.errors import InputError


class TPE:
    """A search for the values of named numbers that give the highest score.

    Parameters
    ----------
    ranges
        The lowest and highest value of each number.
    optuna
        The imported package; see `needed`.
    logarithmic
        True to search on a logarithmic scale.
    startup
        The number of random candidates before TPE starts learning from scores.
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
        # Otherwise Optuna would log each trial to the terminal, amid our own progress lines.
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
        # `study.ask` takes all distributions together, so that TPE samples the numbers jointly.
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
        """Record the score of the last candidate that `ask` returned."""
        self._study.tell(self._trial, score)

    def add(self, candidate: Mapping[str, float], score: float) -> None:
        """Record another candidate and its score, such as one from an earlier process."""
        trial = self._create_trial(
            params=dict(candidate),
            distributions=self._space,
            value=score,
        )
        self._study.add_trial(trial)


def needed(package: str, needed_by: str, instead: str = "") -> ModuleType:
    """Import a package that the optional extra `search` installs.

    Raises
    ------
    InputError
        The package is not installed. The message mentions `needed_by` and adds `instead`.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        advice = f"pip install 'perdure[search]'{instead}"
        raise InputError(f"{needed_by} needs `{package}`: {advice}.") from error
