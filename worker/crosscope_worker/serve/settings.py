"""The inference process's settings from the environment. Read once, in main()."""

from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from crosscope_proto.settings import ListenAddress
from crosscope_proto.specs import Float32
from crosscope_store.settings import StoreSettings

Count = Annotated[int, Field(ge=1)]


class ServeSettings(StoreSettings):
    """Settings of `python -m crosscope_worker serve`."""

    model_config = SettingsConfigDict(env_prefix="CROSSCOPE_WORKER_")

    listen: ListenAddress = "127.0.0.1:50061"
    """A gRPC address: host:port or unix:PATH."""
    token: SecretStr | None = None
    """Callers must send "authorization: Bearer TOKEN"; a TCP port needs one, a Unix socket is private by itself."""
    allow_anyone: bool = False
    """Whether a TCP port may do without a token."""
    device: str = "cpu"
    """The torch device on which models and crosscoders run; or several, see Placement."""
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
    """Memory of each device for the weights of pairs and crosscoders; by default three quarters. Those unused for
    longest go first, but none that a call uses."""
    max_cache_bytes: Count | None = None
    """Memory for the keys and values of prompts that are continued, of both models together; by default an eighth of
    the smallest device's."""
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
    stuck_after_s: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """How long the device's thread may take for one batch before the worker says that it does not serve; by default 30
    s on a GPU, 600 s on the CPU."""

    @field_validator("device")
    @classmethod
    def _is_there(cls, value: str) -> str:
        """Refuses devices that the machine does not have."""
        if value == "cpu":
            return value
        from crosscope_worker.models.placement import Placement  # torch and transformers: 7 s of a core

        return str(Placement.of(value))

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        """Refuses a TCP port on which anyone may ask, unless told so by name."""
        if not (self.listen.startswith("unix:") or self.token or self.allow_anyone):
            raise ValueError(
                f"others can reach {self.listen}: set CROSSCOPE_WORKER_TOKEN, and CROSSCOPE_SERVER_WORKER_TOKEN at the "
                "server to the same; or CROSSCOPE_WORKER_LISTEN to a socket, unix:PATH; or "
                "CROSSCOPE_WORKER_ALLOW_ANYONE=true where nobody else reaches it"
            )
        return self
