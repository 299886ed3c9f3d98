"""A rule with its settings, as it is given everywhere: by its name, as a mapping, or as a `Rule`."""

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

Space = Literal["delta", "factor"]
Since = Literal["pretrained", "start"]
KeptByTask = Mapping[str, Mapping[str, Mapping[str, Tensor]]]
"""What adapters keep for rules: by its name, the task and the layer."""
WHERE: dict[str, Any] = {
    "space": (Space, "delta"),
    "since": (Since, "pretrained"),
    "search": (Search, Search()),
}


@dataclass(frozen=True, init=False)
class Rule:
    """A rule of `merging/` with its settings, and what it is applied to.

    Whoever takes a rule also takes its name, or a mapping of `name` and settings, as in a recipe.

    Parameters
    ----------
    name
        The rule's name, or the path of a Python file with one.
    space
        `delta`: ΔW = s B A of each layer, which is how LoRA acts, summed exactly; `factor`: the modules' own parameters
        (A and B apart), relative to their common start. Bottleneck adapters have only `factor`. The two differ: the sum
        of factors has the cross terms B_i A_j.
    since
        `pretrained`: a task vector is all that the module adds to the pre-trained model (the paper's tau = Phi -
        Phi_pre); with modules started from the previous task it contains the earlier tasks, which so count several
        times. `start`: only what training on the task itself has added.
    search
        How the scale is searched where it is `search`.
    settings
        Its own settings, such as `scale`. `options` holds those that are given.

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
    options: Mapping[str, Any]
    space: Space
    since: Since
    search: Search

    def __init__(
        self,
        name: str = "task_arithmetic",
        *,
        space: Space = "delta",
        since: Since = "pretrained",
        search: Search | Mapping[str, Any] | None = None,
        **settings: Any,
    ):
        self._set(
            name,
            settings | {"space": space, "since": since} | ({"search": search} if search else {}),
            "",
        )

    @classmethod
    def of(cls, rule: RuleLike, where: str = "") -> Rule:
        """Return a rule that is given in any of the three ways.

        Parameters
        ----------
        where
            The file that it stands in, for an error.

        Raises
        ------
        InputError
            It is none of them, or there is no such rule or setting.
        """
        if isinstance(rule, Rule):
            return rule
        name, settings = named(rule, "rule")
        made = cls.__new__(cls)
        made._set(name, settings, where)
        return made

    def _set(self, name: str, settings: Mapping[str, Any], where: str) -> None:
        """Check all settings and keep them."""
        if not isinstance(name, str):
            raise InputError(f"A rule's name is a text such as `ties`, got {name!r}.")
        function, where = (
            registry.find("rule", name),
            f"{where}{': ' if where else ''}rule `{name}`",
        )
        given = {key: settings[key] for key in WHERE if key in settings}
        options = {key: value for key, value in settings.items() if key not in WHERE}
        applied = validated(WHERE, given, where)
        over = applied["search"].over if "search" in applied else "all"
        if over != "all" and name != "task_arithmetic":
            raise InputError(f"`search.over: {over}` is for `task_arithmetic`, not for `{name}`.")
        if "search" in given and "scale" not in options:
            raise InputError(
                f"`search` of {where} says how a scale is found: give it with `scale: search`."
            )
        searched = {}
        if options.get("scale") == "search" and "scale" in registry.options(function):
            searched = {"scale": options.pop("scale")}  # a run finds the number
        options = checked(function, options, where)
        check_settings(function, options)
        options |= searched
        usual = {key: default for key, (_, default) in WHERE.items()}
        for key, value in {"name": name, "options": options, **usual, **applied}.items():
            object.__setattr__(self, key, value)

    @property
    def section(self) -> dict[str, Any]:
        """The rule as a recipe names it: a mapping of `name` and settings."""
        search = {"search": vars(self.search)} if self.searches else {}
        return {
            "name": self.name,
            "space": self.space,
            "since": self.since,
            **search,
            **self.options,
        }

    @property
    def own(self) -> dict[str, Any]:
        """The same without what is as usual."""
        usual = {key: default for key, (_, default) in WHERE.items()}
        return {key: value for key, value in self.section.items() if usual.get(key) != value}

    @property
    def label(self) -> str:
        """The name, and the settings that are not the defaults: what tells it from other rules in `scores.csv`."""
        options = dict(self.options)
        if self.searches and self.search.over != "all":
            options["scale"] = f"search over {self.search.over} by {self.search.by}"
        return label(self.name, options, self.space, self.since)

    def with_options(self, options: Mapping[str, Any]) -> Rule:
        """The rule with other settings of its own, which are right already."""
        made = type(self).__new__(type(self))
        for key, value in {**vars(self), "options": options}.items():
            object.__setattr__(made, key, value)
        return made

    def with_scale(self, scale: Any) -> Rule:
        """The rule with another scale."""
        return self.with_options({**self.options, "scale": scale})

    def __call__(self, vectors: Mapping[str, Any], kept: KeptByTask | None = None) -> Any:
        """What the rule makes of task vectors, by task name: one, one for each task, or a `Mixture`.

        Raises
        ------
        InputError
            The rule needs what was not `kept`.
        """
        needed = {}
        for name in self.nature.needs:
            if not kept or not kept.get(name):
                raise InputError(
                    f"The rule `{self.name}` needs {KEPT[name]}, which were not kept: learn the tasks with `training: "
                    f"{{keep_{name}: true}}`."
                )
            needed[name] = kept[name]
        return registry.find("rule", self.name)(vectors, **needed, **self.options)

    @property
    def nature(self) -> Nature:
        """What the rule declares."""
        return nature_of(registry.find("rule", self.name))

    @property
    def routed(self) -> bool:
        """Whether each task has a model of its own, or each input."""
        return self.nature.order == "routed"

    @property
    def searches(self) -> bool:
        """Whether its scale is to be searched on validation data."""
        return self.options.get("scale") == "search"


RuleLike = Rule | str | Mapping[str, Any]
"""A rule as it may be given: itself, its name, or a mapping of `name` and settings."""


def label(name: str, options: Mapping[str, Any], space: str, since: str) -> str:
    """Return a rule's name with the settings that are not the defaults.

    Examples
    --------
    >>> label("ties", {"density": 0.3}, "delta", "start")
    'ties(density=0.3, since=start)'
    """
    usual = {"space": "delta", "since": "pretrained"}
    settings = {**options, "space": space, "since": since}
    shown = [f"{key}={value}" for key, value in settings.items() if usual.get(key) != value]
    return f"{name}({', '.join(shown)})" if shown else name
