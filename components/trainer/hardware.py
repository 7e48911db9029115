"""What the machine has, and how training uses it."""

from __future__ import annotations

import logging
from pathlib import Path

import tensorflow as tf

log = logging.getLogger(__name__)


def choose_strategy() -> tf.distribute.Strategy:
    """MirroredStrategy over several GPUs; else TensorFlow's default, one device.

    GPU memory is taken as it is needed: the model server of the serving check wants some of the same GPU.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # TensorFlow has already started on it
            log.info("%s is in use already; its memory is not shared", gpu.name)
    gpus = tf.config.list_logical_devices("GPU")
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus])
    return tf.distribute.get_strategy()


def has_bfloat16() -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones: any GPU, or a CPU with AVX-512 BF16 or AMX."""
    if tf.config.list_physical_devices("GPU"):
        return True
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="ascii", errors="replace") if cpuinfo.exists() else ""
    return " avx512_bf16" in flags or " amx_bf16" in flags
