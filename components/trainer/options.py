"""Whether the training's options fit the encoder; imports nothing heavy, so that a mistake is told at once."""

from __future__ import annotations

from components.config import EncoderConfig, HeadConfig, TrainingConfig
from components.encoder.config import BertGeometry
from components.errors import ConfigError


def check_options(
    training: TrainingConfig,
    encoder: EncoderConfig,
    geometry: BertGeometry,
    max_length: int,
    head: HeadConfig,
    windows: bool,
) -> None:
    """Refuses options that could not act as they say.

    Args:
      max_length: tokens of the longest text.
      windows: whether long texts are read in windows.

    Raises:
      ConfigError: naming the option, and what to change.
    """
    if not encoder.trainable:
        options = {
            "stages": bool(training.stages),
            "layer_decay": training.layer_decay < 1,
            "lora_rank": training.lora_rank > 0,
        }
        for name, used in options.items():
            if used:
                raise ConfigError(
                    f"training.{name}: is about the encoder's learning, but encoder.trainable is false; remove one"
                )
    for number, stage in enumerate(training.stages, 1):
        if stage.layers != "all" and stage.layers > geometry.num_hidden_layers:
            raise ConfigError(
                f"training.stages: stage {number} trains {stage.layers} layers, but the encoder has "
                f'{geometry.num_hidden_layers}; write layers = "all" for all of them and the embeddings'
            )
    if training.lora_rank and not geometry.num_hidden_layers:
        raise ConfigError("training.lora_rank: the encoder has no layers (encoder.num_hidden_layers is 0)")
    narrowest = min(geometry.hidden_size, geometry.intermediate_size)
    if training.lora_rank and training.lora_rank >= narrowest:
        raise ConfigError(
            f"training.lora_rank: {training.lora_rank} is no low rank for kernels of {narrowest} columns; give less"
        )
    if training.batch_tokens is not None and training.batch_tokens < max_length:
        raise ConfigError(
            f"training.batch_tokens: {training.batch_tokens} is less than one text may have (tokenizer.max_length, "
            f"{max_length}); give more"
        )
    if training.xla and (head.batch_norm or head.kind == "stacked"):
        raise ConfigError("training.xla: its padding would count in head.batch_norm's statistics; remove one of them")
    if windows and any(stage.cache and stage.layers != "all" for stage in training.stages):
        raise ConfigError(
            'tokenizer.long_text: what frozen layers give is not kept for "windows"; set cache = false in '
            "training.stages"
        )
    if training.xla and windows:
        raise ConfigError('training.xla: needs shapes that are known, and tokenizer.long_text = "windows" has none')
