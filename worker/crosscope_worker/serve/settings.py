"""The inference process's settings from the environment. Read once, in main()."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from crosscope_proto.settings import ProcessSettings
from crosscope_proto.specs import Float32

Count = Annotated[int, Field(ge=1)]


class ServeSettings(ProcessSettings):
    """Settings of `python -m crosscope_worker serve`."""

    model_config = SettingsConfigDict(env_prefix="CROSSCOPE_WORKER_")

    listen: str = "127.0.0.1:50061"
    """A gRPC address: host:port or unix:PATH."""
    device: str = "cpu"
    """The torch device on which models and crosscoders run."""
    float32: Float32 | None = None
    """How products of crosscoders are made on CUDA: "ieee" or "tf32"; by default as a crosscoder's recipe says, and
    tf32 where it says nothing. Models compute in their own data type either way."""
    max_prompt_tokens: Count = 4096
    """Maximum length of a prompt in tokens; longer prompts are refused."""
    max_batch_tokens: Count = 8192
    """Tokens of one forward, padding included."""
    max_queued_tokens: Count = 65536
    """Tokens that may wait for the device; beyond them, prompts are refused with a hint when to retry."""
    max_model_bytes: Count | None = None
    """Memory for the weights of pairs and crosscoders; by default three quarters of the device's. Those unused for
    longest go first, but none that a call uses."""
    max_cache_bytes: Count | None = None
    """Memory for the keys and values of prompts that are continued; by default an eighth of the device's."""
    max_queued_generations: Count = 64
    """Prompts that may wait to be continued; beyond them, prompts are refused with a hint when to retry."""
    max_unread_bytes: Count = 256 * 1024**2
    """Memory for answers that callers have not read yet, of all callers together; beyond it, the caller who leaves most
    unread is cut off."""
    prefill_tokens: Count = 256
    """About how many tokens of new prompts are read between two decode steps."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port on 127.0.0.1 for Prometheus; unset: no metrics endpoint."""
    num_threads: Count | None = None
    """Threads of one operation on the CPU; by default torch decides."""
