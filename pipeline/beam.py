"""How Beam runs: in this process, in worker processes, or on a cluster."""

from __future__ import annotations

from components.config import BeamConfig


def beam_arguments(beam: BeamConfig, input_bytes: int) -> list[str]:
    """Small data stays in this process; large data is spread over workers, each of which imports TensorFlow."""
    if beam.pipeline_args:
        return list(beam.pipeline_args)
    mode = beam.mode
    if mode == "auto":
        mode = "multi_processing" if input_bytes > beam.parallel_above_mb * 2**20 else "in_memory"
    workers = beam.workers if mode == "multi_processing" else 1
    # Beam's "DirectRunner" would try to download another runner, Prism, at run time; this is the one it falls back to.
    return [
        "--runner=FnApiRunner",
        f"--direct_running_mode={mode}",
        f"--direct_num_workers={workers}",
        # Names an image that local workers never use: without it TFX packs its own sources anew in every Beam step,
        # some seconds and a copy in the temporary folder each, for workers elsewhere.
        "--sdk_container_image=none",
    ]
