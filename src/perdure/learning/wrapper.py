"""A method around another, such as replay: it changes some hooks, and forwards all others."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from perdure.learning.method import Method
from perdure.learning.snapshot import part

M = TypeVar("M", bound=Method)
INNER = "method/"
"""How the names of the inner method's state begin."""


def forwarding(wrapper: type[M]) -> type[M]:
    """Have a class forward to its `method` every public attribute of `Method` that it does not define itself.

    The list of hooks is `Method` itself, so that a hook that is added there is forwarded, too.
    """
    for name in list(vars(Method)):
        defined_by = next(base for base in wrapper.__mro__ if name in vars(base))
        if not name.startswith("_") and defined_by is Method:
            setattr(wrapper, name, Forwarded(name))
    return wrapper


class Forwarded:
    """An attribute that is the inner method's, unless an instance of the wrapper has one of its own."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, wrapper: Any, owner: type | None = None) -> Any:
        return self if wrapper is None else getattr(wrapper.method, self.name)


@forwarding
@dataclass(kw_only=True)
class Wrapper(Method):
    """A method around another. Whoever derives from it overrides the hooks that change.

    An overridden hook reaches the inner method's by `super()` or by `self.method`.

    Parameters
    ----------
    method
        The method around which it is.
    """

    method: Method
    remembered: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    """What the wrapper itself remembers, as `state` of other methods."""

    tuned = None  # a setting of the inner method is none of the wrapper's

    @property
    def state(self) -> dict[str, Any]:
        """What the wrapper remembers, and under `method/` what the inner method does."""
        return self.remembered | {
            f"{INNER}{name}": value for name, value in self.method.state.items()
        }

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        self.remembered = {name: own for name, own in value.items() if not name.startswith(INNER)}
        if hasattr(self, "method"):  # not while the wrapper is made
            self.method.state = part(value, "method")
