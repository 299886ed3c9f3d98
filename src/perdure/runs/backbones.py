"""The backbone of a recipe: a pre-trained model, or a network that is trained from scratch."""

from collections.abc import Callable, Sequence

from perdure.errors import RunError
from perdure.models.backbone import Backbone
from perdure.models.network import NOT_STOCK, Network
from perdure.models.outline import outline as outlined
from perdure.settings import Section, checked, named

NETWORK = "network"
"""The key that names a network, in place of `model`."""


def make(
    section: Section,
    where: str = "backbone",
    *,
    classes: Callable[[], Sequence[str]] = tuple,
    seed: int = 0,
    outline: bool = False,
) -> Backbone:
    """Create the backbone that a section of a recipe describes.

    Parameters
    ----------
    where
        The name of the section in messages.
    classes
        A function that returns the classes of all tasks, for a network whose section has
        no `classes`.
    seed
        The seed of a network whose section has none.
    outline
        Create the backbone without weights (see `perdure.models.outline`).
    """
    if isinstance(section, dict) and NETWORK in section:
        options = {"seed": seed, **section}
        if options.get("classes") is None:
            options["classes"] = list(classes())
        network = Network(**checked(Network, options, where))
        return network.to("meta") if outline else network
    name, options = named(section, where, key="model")
    settings = checked(Backbone.load, options, where)
    return outlined(name, settings) if outline else Backbone.load(name, **settings)


def check(section: Section, where: str) -> None:
    """Check the settings in a section of a recipe, without loading anything.

    Raises
    ------
    InputError
        A setting is unknown or of the wrong type.
    """
    if isinstance(section, dict) and NETWORK in section:
        checked(Network, section, where, given=() if "classes" in section else ("classes",))
    else:
        _, options = named(section, where, key="model")
        checked(Backbone.load, options, where)


def is_network(section: Section) -> bool:
    """Return True if a section of a recipe describes a network that is trained from scratch."""
    return isinstance(section, dict) and NETWORK in section


def name_of(section: Section) -> str:
    """Return the name of a pre-trained model, or the kind of a network."""
    key = NETWORK if is_network(section) else "model"
    name, _ = named(section, "backbone", key=key)
    return name


def check_export(section: Section) -> None:
    """Raise `RunError` if no other tool could load the backbone."""
    if is_network(section):
        raise RunError(NOT_STOCK)
