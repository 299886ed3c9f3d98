"""The posteriors of the last tasks, in the state of a method: q_{t-1}, q_{t-2}, … in order.

The state contains the mean and log σ of each parameter as `posterior/0/mean/NAME` and
`posterior/0/log_sigma/NAME`. The number is 0 in the latest posterior, and larger in older
ones. The oldest may be the prior of the first task. Posteriors are plain tensors, which
are never trained.
"""

from collections.abc import Mapping

from torch import Tensor

from perdure.errors import RunError
from perdure.learning.snapshot import State, part
from perdure.methods.parts.gaussian import Normal

PREFIX = "posterior"
KINDS = ("mean", "log_sigma")


class Posteriors:
    """The posteriors in the state of a method; all changes are made in that state."""

    def __init__(self, state: State):
        self.state = state

    def __len__(self) -> int:
        ages = {name.split("/")[1] for name in self.state if name.startswith(f"{PREFIX}/")}
        return len(ages)

    def knows(self, name: str) -> bool:
        """Return True if the latest posterior has a parameter called `name`."""
        return _key(0, "mean", name) in self.state

    def latest(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the mean and log σ of a parameter in the latest posterior."""
        return self._of(0, name)

    def start(self, name: str, mean: Tensor, log_sigma: Tensor) -> None:
        """Add a new parameter, with its prior, to the latest posterior."""
        self.state[_key(0, "mean", name)] = mean.detach().clone()
        self.state[_key(0, "log_sigma", name)] = log_sigma.detach().clone()

    def drop(self, name: str) -> None:
        """Remove a parameter from all posteriors."""
        for age in range(len(self)):
            for kind in KINDS:
                self.state.pop(_key(age, kind, name), None)

    def rename(self, old: str, new: str) -> None:
        """Rename a parameter in all posteriors."""
        for age in range(len(self)):
            for kind in KINDS:
                value = self.state.pop(_key(age, kind, old), None)
                if value is not None:
                    self.state[_key(age, kind, new)] = value

    def normal(self, age: int, like: Mapping[str, Tensor]) -> Normal:
        """Return the posterior of a given age, for the parameters in `like`, on their devices.

        If a parameter did not exist at that time, its first entry is used, which is its prior.
        """
        means = {}
        log_sigmas = {}
        for name, value in like.items():
            known = age
            while known > 0 and _key(known, "mean", name) not in self.state:
                known -= 1
            for kind in KINDS:
                # A state that was read from disk is on the CPU: it is moved only once.
                key = _key(known, kind, name)
                self.state[key] = self.state[key].to(value.device)
            means[name], log_sigmas[name] = self._of(known, name)
        return Normal(means, log_sigmas)

    def push(self, new: Normal, *, keep: int) -> None:
        """Add a posterior as the latest one, and drop the oldest if there are more than `keep`.

        Parameters that are not in `new`, such as the heads of other tasks, stay as they were.
        """
        latest = part(self.state, f"{PREFIX}/0")
        for age in reversed(range(len(self))):
            for name, value in part(self.state, f"{PREFIX}/{age}").items():
                del self.state[f"{PREFIX}/{age}/{name}"]
                if age + 1 < keep:
                    self.state[f"{PREFIX}/{age + 1}/{name}"] = value
        for name, value in latest.items():
            self.state[f"{PREFIX}/0/{name}"] = value
        for name, mean in new.mean.items():
            self.state[_key(0, "mean", name)] = mean
            self.state[_key(0, "log_sigma", name)] = new.log_sigma[name]

    def _of(self, age: int, name: str) -> tuple[Tensor, Tensor]:
        """Return the mean and log σ of a parameter; raise `RunError` if one is missing."""
        mean = self.state.get(_key(age, "mean", name))
        log_sigma = self.state.get(_key(age, "log_sigma", name))
        if mean is None or log_sigma is None or mean.shape != log_sigma.shape:
            raise RunError(f"The posterior of `{name}` that is saved in the run is damaged.")
        return mean, log_sigma


def _key(age: int, kind: str, name: str) -> str:
    return f"{PREFIX}/{age}/{kind}/{name}"
