"""A method around another, such as replay: it changes some hooks and forwards all others."""

from dataclasses import dataclass, field
from typing import TypeVar

from perdure.learning.method import Method
from perdure.learning.snapshot import State, part

M = TypeVar("M", bound=Method)
INNER = "method/"
"""The prefix of the names in the inner method's state."""


def forwarding(wrapper: type[M]) -> type[M]:
    """Make a class forward every public attribute that it does not define to its `method`.

    `Method` itself is the list of hooks, so that a hook added there is forwarded, too.
    """
    for name in list(vars(Method)):
        if name.startswith("_"):
            continue
        defined_by = next(base for base in wrapper.__mro__ if name in vars(base))
        if defined_by is Method:
            setattr(wrapper, name, Forwarded(name))
    return wrapper


class Forwarded:
    """An attribute of the inner method, unless the wrapper's instance has its own.

    It is a descriptor without `__set__`: Python looks into the instance's dictionary first.
    """

    def __init__(self, name: str):
        self.name = name

    def __get__(self, wrapper: "Wrapper | None", owner: type | None = None) -> object:
        if wrapper is None:
            return self
        return getattr(wrapper.method, self.name)


@forwarding
@dataclass(kw_only=True)
class Wrapper(Method):
    """A method around another. A subclass overrides the hooks that change.

    An overridden hook reaches the inner method's by `super()` or by `self.method`.

    Parameters
    ----------
    method
        The inner method.
    """

    method: Method
    remembered: State = field(default_factory=dict, init=False, repr=False)
    """The wrapper's own state, as `state` of other methods."""

    # Not forwarded: `perdure tune` would set the inner method's coefficient on the wrapper.
    tuned = None

    @property
    def state(self) -> State:
        """The wrapper's own state, and under `method/` that of the inner method."""
        inner = {}
        for name, value in self.method.state.items():
            inner[f"{INNER}{name}"] = value
        return self.remembered | inner

    @state.setter
    def state(self, value: State) -> None:
        self.remembered = {}
        for name, remembered in value.items():
            if not name.startswith(INNER):
                self.remembered[name] = remembered
        # The dataclass's `__init__` sets the initial state before it sets `method`.
        if hasattr(self, "method"):
            self.method.state = part(value, "method")
