"""The section [kubeflow]: images, volumes, and what each step gets; pydantic alone, so that it is light."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator, model_validator

from components.config import Section, StepName, step_name

Memory = Annotated[str, Field(pattern=r"^[1-9]\d*(\.\d+)?(Ki|Mi|Gi|Ti|K|M|G|T)$")]
Folder = Annotated[str, Field(pattern=r"^/[^:]*[^/:]$")]
_UNCACHED = ("resolve", "serving_check", "push")  # they look at what the platform does not see
_TAG = re.compile(r"(@sha256:[0-9a-f]{64}|:(?P<tag>[\w][\w.-]{0,127}))$", re.ASCII)


class StepConfig(Section):
    """What one step's container gets; None: as `default` says."""

    cpu: PositiveFloat | None = None  # cores
    memory: Memory | None = None
    gpus: NonNegativeInt | None = None
    gpu_type: str | None = None  # kubeflow: nvidia.com/gpu; vertex: NVIDIA_TESLA_T4, NVIDIA_L4 …
    node_selector: dict[str, str] | None = None  # kubeflow: labels of the nodes
    cache: bool | None = None
    retries: NonNegativeInt | None = None
    beam_pipeline_args: tuple[str, ...] | None = None  # in place of beam.pipeline_args and beam.mode


class KubeflowConfig(Section):
    """How the graph becomes containers on Kubeflow Pipelines or Vertex AI."""

    image: str = "biobert-cnn-pipeline:0.1.0"  # deploy/pipeline/Dockerfile
    gpu_image: str = "biobert-cnn-pipeline-gpu:0.1.0"  # of steps that have GPUs
    # kubeflow: folder in the containers → name of a claim (ReadWriteMany). Vertex AI mounts buckets by itself: /gcs/…
    volumes: dict[Folder, Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]] = {}
    bucket: Annotated[str, Field(pattern=r"^gs://[^/]+(/.*)?$")] | None = None  # vertex: where runs put artifacts
    # Overrides that hold in the containers alone, as for --set: above all the paths there.
    set: tuple[str, ...] = ()
    cache: bool = True  # a step whose inputs are known is answered from the platform's cache
    default: StepConfig = StepConfig(cpu=2, memory="8Gi")
    steps: dict[StepName | Literal["resolve"], StepConfig] = {}

    @field_validator("image", "gpu_image")
    @classmethod
    def _image_is_pinned(cls, value: str) -> str:
        found = _TAG.search(value)
        if found is None or found["tag"] == "latest":
            raise ValueError("must be pinned: end it with a tag other than latest, or with @sha256:…")
        return value

    @field_validator("set")
    @classmethod
    def _overrides_have_values(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            key, equals, _ = item.partition("=")
            if not equals:
                raise ValueError(f"{item!r}: write section.key=value")
            if key.split(".")[0] in ("kubeflow", "beam"):
                raise ValueError(f"{item!r}: is settled when the pipeline is compiled; set it outside of `set`")
        return value

    @model_validator(mode="after")
    def _caching_is_possible(self) -> KubeflowConfig:
        for step in _UNCACHED:
            if self.steps.get(step, StepConfig()).cache:  # type: ignore[call-overload]
                raise ValueError(f"steps.{step}.cache: this step looks at what the platform does not see; leave it out")
        return self

    def of(self, node_id: str) -> StepConfig:
        """What a node gets, `default` filled in; `cache` and `retries` are never None."""
        step = step_name(node_id)
        own = self.steps.get(step, StepConfig()).model_dump(exclude_none=True)  # type: ignore[call-overload]
        merged = {"cache": self.cache, "retries": 0, **self.default.model_dump(exclude_none=True), **own}
        if step in _UNCACHED:
            merged["cache"] = False
        return StepConfig.model_validate(merged)
