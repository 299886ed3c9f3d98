"""Training as one usually does: an epoch of transformers' Trainer that reports nothing."""

import contextlib
import io
import tempfile
from typing import Any

import torch
import transformers


def epoch(
    model: Any,
    *,
    batch_size: int,
    rate: float,
    optimizer: torch.optim.Optimizer | None = None,
    settings: dict[str, Any] | None = None,
    **others: Any,
) -> None:
    """Train for one epoch; `settings` are further arguments, `others` those of the Trainer."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            num_train_epochs=1,
            learning_rate=rate,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            **settings or {},
        )
        trainer = transformers.Trainer(model, arguments, **others)
        if optimizer is not None:
            trainer.optimizer = optimizer
        # The trainer prints its own figures, which do not belong into the table.
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
