"""The type checker that the tests put behind the annotations of tensors; an int will do for a
float.
"""

from pathlib import Path

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

SOURCE = Path(__file__).parents[1] / "src"


def modules_with_shapes() -> list[str]:
    """Return the modules whose annotations say the shapes of tensors."""
    modules = []
    for path in sorted(SOURCE.rglob("*.py")):
        if "jaxtyping" in path.read_text(encoding="utf-8"):
            modules.append(".".join(path.relative_to(SOURCE).with_suffix("").parts))
    return modules
