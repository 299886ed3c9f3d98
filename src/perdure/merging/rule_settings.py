"""Rules with their settings, which can be given as a name, as a mapping, or as a `Rule`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from perdure import registry
from perdure.errors import InputError
from perdure.merging.rule import KEPT, Nature, check_settings, nature_of
from perdure.merging.search import Search
from perdure.settings import checked, named, validated
from perdure.vectors.task_vector import TaskVector

Space = Literal["delta", "factor"]
Since = Literal["pretrained", "start"]
# Statistics saved with adapters for use by rules: by statistic, task and layer.
KeptByTask = Mapping[str, Mapping[str, Mapping[str, Tensor]]]
# The type and default of each setting that all rules share. These settings define the
# space in which a rule is applied, and the search for its scale.
WHERE: dict[str, tuple[object, object]] = {
    "space": (Space, "delta"),
    "since": (Since, "pretrained"),
    "search": (Search, Search()),
}


@dataclass(frozen=True, init=False)
class Rule:
    """A rule with its settings, and the space in which it is applied.

    Parameters that take a `Rule` also accept the name of a rule, or a mapping with `name`
    and settings, as in a recipe.

    Parameters
    ----------
    name
        The rule's name, or the path of a Python file that defines one.
    space
        `delta`: combine the changes ΔW = s B A that LoRA applies to each layer, exactly;
        `factor`: combine the parameters of the modules (A and B separately), relative to
        their common start. The results differ, because the product of summed factors has
        cross terms B_i A_j. Bottleneck adapters support only `factor`.
    since
        `pretrained`: a task vector is everything the module adds to the pre-trained model
        (the paper's tau = Phi - Phi_pre). If each module starts from the previous one,
        task vectors include earlier tasks, which are then counted several times. `start`:
        a task vector is only the change made by training on that task.
    search
        Settings for the search, which are used if `scale` is `search`.
    settings
        Settings that are specific to the rule, such as `scale`. Those given are stored in
        `options`.

    Raises
    ------
    InputError
        There is no such rule, or it has no such setting.

    Examples
    --------
    >>> Rule("ties", density=0.3) == Rule.of({"name": "ties", "density": 0.3})
    True
    >>> Rule("task_arithmetic", scale=0.3, space="factor").label
    'task_arithmetic(scale=0.3, space=factor)'
    """

    name: str
    options: Mapping[str, Any]  # only the rule knows their types
    space: Space
    since: Since
    search: Search

    def __init__(
        self,
        name: str = "task_arithmetic",
        *,
        space: Space = "delta",
        since: Since = "pretrained",
        search: Search | Mapping[str, object] | None = None,
        **settings: object,
    ):
        settings |= {"space": space, "since": since}
        if search:
            settings["search"] = search
        self._set(name, settings, "")

    @classmethod
    def of(cls, rule: RuleLike, where: str = "") -> Rule:
        """Convert the name of a rule, or a mapping with `name` and settings, to a `Rule`.

        A `Rule` is returned unchanged.

        Parameters
        ----------
        where
            The file in which the rule is specified, for error messages.

        Raises
        ------
        InputError
            `rule` has the wrong type, or there is no such rule or setting.
        """
        if isinstance(rule, Rule):
            return rule
        name, settings = named(rule, "rule")
        # `__init__` has no `where`, which would collide with a rule's setting of that name.
        made = cls.__new__(cls)
        made._set(name, settings, where)
        return made

    def _set(self, name: str, settings: Mapping[str, object], where: str) -> None:
        """Check and store all settings."""
        if not isinstance(name, str):
            raise InputError(f"A rule's name is a string such as `ties`, got {name!r}.")
        function = registry.find("rule", name)
        where = f"{where}: rule `{name}`" if where else f"rule `{name}`"
        given = {key: settings[key] for key in WHERE if key in settings}
        options = {key: value for key, value in settings.items() if key not in WHERE}

        applied = validated(WHERE, given, where)
        over = "all"
        if "search" in applied:
            over = applied["search"].over
        if over != "all" and name != "task_arithmetic":
            raise InputError(f"`search.over: {over}` is for `task_arithmetic`, not for `{name}`.")
        if "search" in given and "scale" not in options:
            raise InputError(
                f"`search` of {where} defines how to search for a scale: "
                "use it together with `scale: search`."
            )

        # The rule's type annotations do not allow `search`, which a run later replaces by
        # a number, so set it aside while checking the other settings.
        has_scale = "scale" in registry.options(function)
        searches = has_scale and options.get("scale") == "search"
        if searches:
            del options["scale"]
        options = checked(function, options, where)
        check_settings(function, options)
        if searches:
            options["scale"] = "search"

        # The class is frozen, so that rules can be shared safely. Only this method and
        # `with_options` set its fields.
        values = {
            "name": name,
            "options": options,
            **_defaults(),
            **applied,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def section(self) -> dict[str, object]:
        """The rule as written in a recipe, a mapping with `name` and settings."""
        section: dict[str, object] = {
            "name": self.name,
            "space": self.space,
            "since": self.since,
        }
        if self.searches:
            section["search"] = vars(self.search)
        return section | dict(self.options)

    @property
    def own(self) -> dict[str, object]:
        """The rule as written in a recipe, without `space`, `since` and `search` if default."""
        defaults = _defaults()
        section: dict[str, object] = {}
        for key, value in self.section.items():
            if defaults.get(key) != value:
                section[key] = value
        return section

    @property
    def label(self) -> str:
        """The name of the rule with the settings that are given, as in `scores.csv`."""
        # `scores.csv` identifies rules by label, so two searches with one rule need two labels.
        options = dict(self.options)
        if self.searches and self.search.over != "all":
            options["scale"] = f"search over {self.search.over} by {self.search.by}"
        return label(self.name, options, self.space, self.since)

    def with_options(self, options: Mapping[str, object]) -> Rule:
        """Return a copy of the rule with different options, without checking them."""
        made = type(self).__new__(type(self))
        values = vars(self) | {"options": options}
        for key, value in values.items():
            object.__setattr__(made, key, value)
        return made

    def with_scale(self, scale: object) -> Rule:
        """Return a copy of the rule with a different scale."""
        return self.with_options({**self.options, "scale": scale})

    def __call__(
        self,
        vectors: Mapping[str, TaskVector],
        kept: KeptByTask | None = None,
    ) -> Any:
        """Apply the rule to task vectors, given by task name.

        The result is one task vector, one per task, or a `Mixture`. User-defined rules
        may return anything else, so `combine` checks the result.

        Raises
        ------
        InputError
            The rule needs statistics that are missing from `kept`.
        """
        needed: dict[str, object] = {}
        for name in self.nature.needs:
            statistics = kept.get(name) if kept else None
            if not statistics:
                raise InputError(
                    f"The rule `{self.name}` needs {KEPT[name]}, which were not saved: "
                    f"learn the tasks with `training: {{keep_{name}: true}}`."
                )
            needed[name] = statistics
        # The function is not a field, because a `Rule` has only plain values, which can
        # be compared and saved.
        function = registry.find("rule", self.name)
        return function(vectors, **needed, **self.options)

    @property
    def nature(self) -> Nature:
        """The rule's declared properties."""
        return nature_of(registry.find("rule", self.name))

    @property
    def routed(self) -> bool:
        """True if the model differs between tasks or inputs."""
        return self.nature.order == "routed"

    @property
    def searches(self) -> bool:
        """True if the scale still has to be determined by a search on validation data."""
        return self.options.get("scale") == "search"


# Anything that `Rule.of` accepts: a rule, its name, or a mapping with `name` and settings.
RuleLike = Rule | str | Mapping[str, object]


def _defaults() -> dict[str, object]:
    """Return the defaults of the settings that all rules share."""
    return {key: default for key, (_, default) in WHERE.items()}


def label(name: str, options: Mapping[str, object], space: str, since: str) -> str:
    """Return the name of a rule with its options and any non-default `space` and `since`.

    Examples
    --------
    >>> label("ties", {"density": 0.3}, "delta", "start")
    'ties(density=0.3, since=start)'
    """
    shown: list[str] = []
    for key, value in options.items():
        if value is not None:
            shown.append(f"{key}={value}")
    if space != "delta":
        shown.append(f"space={space}")
    if since != "pretrained":
        shown.append(f"since={since}")
    if not shown:
        return name
    return f"{name}({', '.join(shown)})"
