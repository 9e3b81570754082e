"""The Python SDK of crosscope: what did chat-tuning change inside a model?

    from crosscope import Client

    with Client() as client:
        crosscoder = client.crosscoder("demo")
        print(crosscoder.latents(where=["nu_err < 0.2"], order_by="-rel_norm", limit=20))

Talks to a server by gRPC and to nothing else: no torch, no files of the server. `AsyncClient` has the same calls for
asyncio. The public names are those of `__init__.pyi`; each loads when it is first used, so that importing the package
costs next to nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
