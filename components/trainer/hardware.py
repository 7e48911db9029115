"""What the machine has, and how training uses it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from components.errors import ConfigError, PipelineError

_CPUINFO = Path("/proc/cpuinfo")

log = logging.getLogger(__name__)


def choose_strategy() -> tf.distribute.Strategy:
    """MultiWorkerMirroredStrategy where TF_CONFIG names several workers, as Kubernetes' and Vertex AI's training jobs
    set it (https://www.tensorflow.org/guide/distributed_training#setting_up_tf_config_environment_variable);
    MirroredStrategy over several GPUs of this host; else TensorFlow's default, one device.

    With several workers it must be called before anything else of TensorFlow. GPU memory is taken as it is needed: the
    model server of the serving check wants some of the same GPU.

    Raises:
      ConfigError: TF_CONFIG cannot be read.
    """
    physical = tf.config.list_physical_devices("GPU")
    if physical:
        _take_vendors_products()
    for gpu in physical:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # TensorFlow has already started on it
            log.info("%s is in use already; its memory is not shared", gpu.name)
    if workers_in_cluster() > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU")
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus])
    return tf.distribute.get_strategy()


def _take_vendors_products() -> None:
    """XLA on a GPU takes cuBLAS's products and does not try kernels of its own for each, which takes long; unless
    XLA_FLAGS says otherwise."""
    flag, flags = "--xla_gpu_enable_triton_gemm", os.environ.get("XLA_FLAGS", "").strip()
    if flag not in flags and (not flags or flags.startswith("-")):  # else it names a file of flags
        os.environ["XLA_FLAGS"] = f"{flag}=false {flags}".strip()


def workers_in_cluster() -> int:
    """How many processes train together, by TF_CONFIG; 1 where it says nothing.

    Raises:
      ConfigError: TF_CONFIG cannot be read.
    """
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        cluster = json.loads(text).get("cluster") or {}
        return max(1, sum(len(cluster.get(kind, ())) for kind in ("chief", "worker")))
    except (ValueError, AttributeError, TypeError):
        raise ConfigError("TF_CONFIG: is not a JSON object with cluster and task; correct or unset it") from None


def worker_number(strategy: tf.distribute.Strategy) -> int:
    """Which of the workers this process is, from 0, the chief, who alone writes what all of them made."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().as_dict() and resolver.task_type == "worker":
        return 1 + int(resolver.task_id)
    return int(resolver.task_id)


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """How many of the replicas are in this process."""
    return len(strategy.extended.worker_devices) if strategy.num_replicas_in_sync > 1 else 1


def check_alike(strategy: tf.distribute.Strategy, value: int, message: str) -> None:
    """Waits for all workers, and raises PipelineError(message) where one of them has another value."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and np.ptp(_gathered(strategy, [value])):
        raise PipelineError(message)


def of_chief(strategy: tf.distribute.Strategy, values: dict[str, float]) -> dict[str, float]:
    """The chief's values in every worker; waits for all of them. Alone, `values`."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return values
    return dict(zip(values, _gathered(strategy, list(values.values()))[0].tolist(), strict=True))


def _gathered(strategy: tf.distribute.Strategy, values: Sequence[float]) -> np.ndarray:
    """The values of every replica, float64 [replicas, values], the chief's first."""

    @tf.function(autograph=False)
    def gathered() -> tf.Tensor:
        mine = strategy.run(lambda: tf.constant([values], tf.float64))
        return strategy.gather(mine, axis=0)

    return np.asarray(gathered())


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when every worker has come here."""
    check_alike(strategy, 0, "")


def has_bfloat16() -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones: GPUs from compute capability 8.0 (Ampere) on, for
    older ones have no such product at all; without a GPU, a CPU with AVX-512 BF16 or AMX."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(one.get("compute_capability", (8, 0)) >= (8, 0) for one in details)  # others than NVIDIA's say none
    flags = _CPUINFO.read_text(encoding="ascii", errors="replace") if _CPUINFO.exists() else ""
    return " avx512_bf16" in flags or " amx_bf16" in flags
