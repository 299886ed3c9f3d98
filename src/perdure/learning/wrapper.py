"""The base class of methods that wrap another method, as replay does.

A wrapper overrides the hooks that it changes, and forwards all others.
"""

from dataclasses import dataclass, field
from typing import TypeVar

from perdure.learning.method import Method, method_name
from perdure.learning.snapshot import State, part

M = TypeVar("M", bound=Method)
INNER = "method/"
"""The prefix of the inner method's entries in the state of the wrapper."""


def forwarding(wrapper: type[M]) -> type[M]:
    """Make a wrapper class forward each hook that it does not override to its inner `method`.

    The hooks are all public attributes of `Method`, so a hook that is added there is forwarded too.
    """
    for name in list(vars(Method)):
        if name.startswith("_"):
            continue
        defined_by = next(base for base in wrapper.__mro__ if name in vars(base))
        if defined_by is Method:
            setattr(wrapper, name, Forwarded(name))
    return wrapper


class Forwarded:
    """A descriptor that reads an attribute of the wrapper's inner method.

    It has no `__set__`, so an attribute set on the wrapper itself takes precedence.
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
    """A method that wraps another method; a subclass overrides the hooks that it changes.

    An override can call the hook of the inner method through `super()` or `self.method`.

    Parameters
    ----------
    method
        The inner method.
    """

    method: Method
    remembered: State = field(default_factory=dict, init=False, repr=False)
    """The entries of `state` that belong to the wrapper itself."""

    # Not forwarded: `perdure tune` would set the inner method's coefficient on the wrapper.
    tuned = None

    @property
    def state(self) -> State:
        """The state of the wrapper, and that of the inner method under the prefix `method/`."""
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


def chain(method: Method) -> list[Method]:
    """Return a method, followed by those inside it, from the outside to the inside."""
    methods = [method]
    while isinstance(method, Wrapper):
        method = method.method
        methods.append(method)
    return methods


def inner_name(method: Method) -> str:
    """Return the name of the method inside all wrappers, or of a method that wraps no other."""
    return method_name(chain(method)[-1])
