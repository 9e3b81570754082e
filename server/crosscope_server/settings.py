"""Settings of the server process. __main__ reads them once from the environment."""

from typing import Annotated, Self

from pydantic import Field, FilePath, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from crosscope_proto.access import is_loopback
from crosscope_proto.ports import LAST_PORT, is_wrong_port
from crosscope_proto.settings import ListenAddress, RedisUrl
from crosscope_store.settings import StoreSettings

_CALLS_A_WORKER = 128
_LEAST_STREAMS = 512


class Settings(StoreSettings):
    """Settings of `python -m crosscope_server`; its own variables start with CROSSCOPE_SERVER_."""

    model_config = SettingsConfigDict(env_prefix="CROSSCOPE_SERVER_")

    listen: ListenAddress = Field(default="127.0.0.1:50051", min_length=1)
    """A gRPC address: host:port or unix:PATH."""
    socket: str | None = Field(default=None, pattern="^unix:.")
    """A further address, a Unix socket of this person alone and without TLS, for those who start the server."""
    workers: Annotated[tuple[str, ...], NoDecode] = ()
    """gRPC targets of the inference workers, separated by commas."""
    queue_url: RedisUrl | None = None
    """Redis of the job queue, redis:// or unix://; unset: no jobs."""
    cache_url: RedisUrl | None = None
    """Redis of the result cache, redis:// or unix://; unset: no cache."""
    reflection: bool | None = None
    """Whether gRPC reflection answers; unset: only if the address is this machine's own."""
    token: SecretStr | None = None
    """A further token that may do everything, for where the home's own cannot be read; see access/store.py."""
    allow_anyone: bool = False
    """Whether callers need no token."""
    allow_plaintext: bool = False
    """Whether an address that others can reach may do without TLS."""
    tls_cert: FilePath | None = None
    """PEM file of the server's certificate and those between it and its authority; unset: no TLS."""
    tls_key: FilePath | None = None
    """PEM file of its private key."""
    tls_client_ca: FilePath | None = None
    """PEM file of the authority whose certificates clients must have; unset: clients need none."""
    worker_token: SecretStr | None = None
    """CROSSCOPE_WORKER_TOKEN of the inference workers, which those on TCP ports ask for."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port on 127.0.0.1 for Prometheus; unset: no metrics endpoint."""
    stream_in_flight: int = Field(default=8, ge=1, le=256)
    """Number of prompts of one stream that are computed at the same time."""
    max_calls: int | None = Field(default=None, ge=1, le=100_000)
    """Prompt calls under way at a time, those that wait among them; of one caller 4/5. More are refused at once. Unset:
    128 for each worker."""
    least_calls: int = Field(default=16, ge=1)
    """Prompt calls that may be under way however busy the server is, which else lets in fewer than max_calls."""
    hold_s: float = Field(default=5.0, ge=0, le=60)
    """Seconds for which prompts wait for an inference worker when none serves."""
    cache_per_caller: bool = False
    """Whether a cached result answers only the caller for whom it was computed."""
    max_unread_bytes: int = Field(default=33_554_432, ge=1)
    """Room for replies of bulk streams that callers have not read, of all together; beyond it, whoever leaves most
    unread is cut off."""
    search_bytes: int = Field(default=4_000_000_000, ge=1_000_000)
    """Room for the indices of examples on disk, in bytes; those used longest ago go first."""
    home_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """What the home may hold; no job is accepted beyond it. Unset: as much as the disk takes."""
    max_open_jobs: int = Field(default=1000, ge=1, le=9000)
    """Jobs that may wait or run; more are refused."""
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """Least severe level that is logged."""

    @field_validator("workers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("workers")
    @classmethod
    def _have_ports(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [target for target in targets if is_wrong_port(target)]:
            raise ValueError(f"has a port that is not between 1 and {LAST_PORT}: {wrong[0]}")
        return targets

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        """Refuses an address that strangers reach without TLS or without tokens, unless told so by name."""
        if (self.tls_cert is None) != (self.tls_key is None) or (self.tls_client_ca and not self.tls_cert):
            raise ValueError(
                "CROSSCOPE_SERVER_TLS_CERT and CROSSCOPE_SERVER_TLS_KEY go together, and with "
                "CROSSCOPE_SERVER_TLS_CLIENT_CA: set the certificate and its key, or none"
            )
        if self.is_local:
            return self
        if not (self.tls_cert or self.allow_plaintext):
            raise ValueError(
                f"others can reach {self.listen}, so it needs TLS: make certificates with `crosscope certs` and set "
                "CROSSCOPE_SERVER_TLS_CERT and CROSSCOPE_SERVER_TLS_KEY; or set CROSSCOPE_SERVER_ALLOW_PLAINTEXT=true "
                "where nobody listens in between"
            )
        return self

    @property
    def most_calls(self) -> int:
        """Prompt calls under way at a time. Each makes all others dearer for gRPC, which looks at every one of them."""
        return self.max_calls or _CALLS_A_WORKER * max(1, len(self.workers))

    @property
    def most_streams(self) -> int:
        """Calls of any kind under way on one connection; further ones wait at their client, and not before our door."""
        return max(_LEAST_STREAMS, self.most_calls)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.listen)

    @property
    def with_reflection(self) -> bool:
        """Whether reflection answers."""
        return self.is_local if self.reflection is None else self.reflection
