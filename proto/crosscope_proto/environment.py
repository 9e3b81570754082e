"""The environment variables that a process gets from the one that starts it: what it needs and nothing else.

People who may submit a recipe are not trusted with tokens. So the process that runs a recipe holds no token but the
hub's, and that one only if the recipe reads from the hub. Pure functions: the caller starts the process.
"""

from collections.abc import Iterable, Mapping
from typing import Final

_ALWAYS: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "TZ", "TZDIR", "LANG", "LANGUAGE", "NO_COLOR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CROSSCOPE_HOME"),
    *("LC_*", "XDG_*", "LD_*", "DYLD_*", "PYTHON*", "MALLOC_*"),
)
"""What every program may need: where it finds things, and its language. A name that ends in * stands for all names that
begin so."""
COMPUTE: Final = (
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "BLIS_*", "VECLIB_*", "NUMEXPR_*", "RAYON_*", "DNNL_*"),
    *("ONEDNN_*", "TOKENIZERS_PARALLELISM"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "ATEN_*", "CUDA*", "NVIDIA_*", "NV_*", "CUBLAS*", "CUDNN*", "NCCL_*"),
    *("HIP_*", "ROCR_*", "ROCM_*", "HSA_*", "CC", "CXX"),
)
"""What torch and the compilers below it read: threads, devices, kernels."""
HUB: Final = ("HF_*", "TRANSFORMERS_*", "HUGGINGFACE_*")
"""Where files of the hub are kept on this machine, and how the hub is asked; no token."""
RAY: Final = ("RAY_*", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""How a Ray cluster is joined, its token included."""
PROXIES: Final = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
"""How other machines are reached. A proxy's address may hold a password."""
HUB_ACCESS: Final = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", *PROXIES)
"""What a process needs to read from the hub as this person."""
LABEL_KEYS: Final = ("*_API_KEY",)
"""Keys of endpoints that label latents: the job worker hands the one that a recipe names to its job."""
WORKER: Final = ("CROSSCOPE_WORKER_*",)
TRACES: Final = ("OTEL_*",)
"""Where spans go. A header of the collector may hold a key, so a job's process gets none of these."""
STORE: Final = (
    *("CROSSCOPE_STORE", "CROSSCOPE_STORE_CACHE_BYTES", "FSSPEC_*", "AWS_*", "AZURE_STORAGE_*"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SHARED_CREDENTIALS_FILE"),
    *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    *("AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "GOOGLE_APPLICATION_CREDENTIALS"),
)
"""Where published things are shared, and the keys with which fsspec reads and writes there. A job's process gets them
where there is a store, for it publishes."""
SERVER: Final = ("CROSSCOPE_SERVER_*",)
APP: Final = ("CROSSCOPE_APP_*", "CROSSCOPE_ADDRESS", "CROSSCOPE_TOKEN", "CROSSCOPE_AUTHOR", "STREAMLIT_*")

_SECRETS: Final = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "AUTHORIZATION")
"""A variable whose name contains one of these words is a secret. Its full name passes it, a pattern of _OWNED, or one
that begins with *."""
_OWNED: Final = (
    "CROSSCOPE_SERVER_*",
    "CROSSCOPE_WORKER_*",
    "CROSSCOPE_APP_*",
    "STREAMLIT_*",
    "FSSPEC_*",
    "AZURE_STORAGE_*",
)


def needed(environment: Mapping[str, str], *groups: Iterable[str]) -> dict[str, str]:
    """The variables of `environment` that every program gets, and those that match a pattern of `groups`."""
    patterns = [*_ALWAYS, *(pattern for group in groups for pattern in group)]
    return {name: value for name, value in environment.items() if any(_allows(each, name) for each in patterns)}


def _allows(pattern: str, name: str) -> bool:
    if pattern.startswith("*"):
        return name.endswith(pattern[1:])
    if not pattern.endswith("*"):
        return name == pattern
    is_secret = any(word in name.upper() for word in _SECRETS)
    return name.startswith(pattern[:-1]) and (pattern in _OWNED or not is_secret)
