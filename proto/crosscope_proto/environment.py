"""Which environment variables a process gets from the one that starts it: what it needs and nothing else.

A recipe is run by people's leave, not by their trust: the process that runs it must hold no token but a hub's, and
that only where it reads from the hub. Pure functions: the caller gives its environment and starts the process.
"""

from collections.abc import Iterable, Mapping
from typing import Final

_ALWAYS: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "TZ", "TZDIR", "LANG", "LANGUAGE", "NO_COLOR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CROSSCOPE_HOME"),
    *("LC_*", "XDG_*", "LD_*", "DYLD_*", "PYTHON*", "MALLOC_*"),
)
"""What every program may need: where it finds things and how it speaks. A name that ends in * stands for all that begin
with what is before it."""
COMPUTE: Final = (
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "BLIS_*", "VECLIB_*", "NUMEXPR_*", "RAYON_*", "DNNL_*"),
    *("ONEDNN_*", "TOKENIZERS_PARALLELISM"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "ATEN_*", "CUDA*", "NVIDIA_*", "NV_*", "CUBLAS*", "CUDNN*", "NCCL_*"),
    *("HIP_*", "ROCR_*", "ROCM_*", "HSA_*", "CC", "CXX"),
)
"""What torch and the compilers below it read: threads, devices, kernels."""
HUB: Final = ("HF_*", "TRANSFORMERS_*", "HUGGINGFACE_*")
"""Where models and data sets of the hub are kept here, and how it is asked; no token."""
HUB_ACCESS: Final = (
    *("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
"""What lets a process read from the hub as this person. A proxy's address may hold a password."""
WORKER: Final = ("CROSSCOPE_WORKER_*",)
SERVER: Final = ("CROSSCOPE_SERVER_*",)
APP: Final = ("CROSSCOPE_APP_*", "CROSSCOPE_ADDRESS", "CROSSCOPE_TOKEN", "STREAMLIT_*")

_SECRETS: Final = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "AUTHORIZATION")
"""A variable whose name holds one of these goes only to whoever names it in full, or owns its whole prefix."""
_OWNED: Final = ("CROSSCOPE_SERVER_*", "CROSSCOPE_WORKER_*", "CROSSCOPE_APP_*", "STREAMLIT_*")


def needed(environment: Mapping[str, str], *groups: Iterable[str]) -> dict[str, str]:
    """The variables of `environment` that every program gets, and those that `groups` of patterns name."""
    patterns = [*_ALWAYS, *(pattern for group in groups for pattern in group)]
    return {name: value for name, value in environment.items() if any(_allows(each, name) for each in patterns)}


def _allows(pattern: str, name: str) -> bool:
    if not pattern.endswith("*"):
        return name == pattern
    is_secret = any(word in name.upper() for word in _SECRETS)
    return name.startswith(pattern[:-1]) and (pattern in _OWNED or not is_secret)
