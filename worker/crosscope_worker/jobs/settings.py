"""The job worker's settings from the environment. Read once, in main()."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from crosscope_proto.label_specs import checked_address
from crosscope_proto.settings import RedisUrl
from crosscope_store.settings import StoreSettings
from crosscope_worker.jobs.machine import one_device
from crosscope_worker.priority import MOST_NICE


class JobSettings(StoreSettings):
    """Settings of `python -m crosscope_worker jobs`."""

    model_config = SettingsConfigDict(env_prefix="CROSSCOPE_WORKER_")

    queue_url: RedisUrl
    """Redis of the job queue, redis:// or unix://."""
    device: str = "cpu"
    """The torch device on which models and training run. Of several, which inference spreads models over, the chat
    model's first."""
    jobs_metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port on 127.0.0.1 for Prometheus; unset: no metrics endpoint."""
    job_threads: int | None = Field(default=None, ge=1)
    """Threads of one operation of a job on the CPU; by default torch decides."""
    job_nice: int = Field(default=5, ge=0, le=MOST_NICE)
    """How far jobs give way to other processes, prompts among them, where they want the same cores: 0 not at all."""
    keep_checkpoints_days: float = Field(default=7, ge=0, allow_inf_nan=False)
    """How long a failed or cancelled job can be retried; 0: not at all."""
    keep_checkpoints_gb: float = Field(default=100, ge=0, allow_inf_nan=False)
    """Bytes that the checkpoints of all such jobs may take; the oldest go first."""
    job_beat_s: float = Field(default=60, ge=1, allow_inf_nan=False)
    """How long a job's process may stand still before it is killed and its job queued again."""
    job_silent_s: float = Field(default=1800, ge=1, allow_inf_nan=False)
    """How long a job may go without a report of progress before its process is killed and it is queued again."""

    ray_address: Annotated[str, Field(min_length=1)] | None = None
    """Address of a Ray cluster on which trainings on several devices run; unset: they run on this machine."""

    data_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders besides the home from which recipes may read files, separated by the system's path separator."""

    label_addresses: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses besides those of this machine that recipes of kind label may call, separated by commas."""

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether a failed job can be retried at all."""
        return self.keep_checkpoints_days > 0 and self.keep_checkpoints_gb > 0

    @field_validator("device")
    @classmethod
    def _one(cls, value: str) -> str:
        return one_device(value)

    @field_validator("label_addresses", mode="before")
    @classmethod
    def _addresses(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(checked_address(part.strip()) for part in value.split(",") if part.strip())

    @field_validator("data_roots", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        folders = [Path(part).expanduser() for part in value.split(os.pathsep) if part]
        if wrong := [str(folder) for folder in folders if not (folder.is_absolute() and folder.is_dir())]:
            raise ValueError(f"{wrong[0]} is not the absolute path of a folder")
        return tuple(folders)
