"""Where an exported model of low precision has its float32 counterpart: in the same artifact, and never pushed."""

from __future__ import annotations

import os


def float32_dir(serving_model_dir: str) -> str:
    """The folder of the same model in float32: it is what gates compare with, and what a warm start reads.

    Args:
      serving_model_dir: of the Model artifact (TFX: `<artifact>/Format-Serving`).
    """
    return os.path.join(os.path.dirname(serving_model_dir.rstrip("/")), "Format-Float32")
