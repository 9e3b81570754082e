"""A store: files below a URL that fsspec opens, and what its errors mean in a sentence. Knows no home.

Nothing is renamed, for object stores cannot. A file is created once, and an entry by whoever comes first. This module
is imported where there is a store: fsspec takes a tenth of a second, which a home alone need not pay.
"""

import errno
import hashlib
import itertools
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from crosscope_store.entries import (
    FILES,
    MAX_BYTES,
    PUBLISHED,
    Entry,
    FileFact,
    Key,
    new_id,
    parse_entry,
    parse_key,
)
from crosscope_store.errors import EntryError, StoreAway, StoreGone, StoreRefused, StoreTaken
from crosscope_store.files import Tick, idle

BLOCK_BYTES = 32 << 20
"""Bytes that are read or written at once; after each, whoever waits is told."""
_PATIENCE: Mapping[str, Any] = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}}
"""How long an S3 store may take for an answer. It is asked again by whoever needs it."""
_EXTRAS = {"s3": "./store[s3]", "s3a": "./store[s3]"}
_OF_ONE_PROCESS = ("memory", "data", "reference")
"""Kinds of store that no second process sees."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_REFUSALS = ("NoCredentials", "PartialCredentials", "InvalidRegion", "ParamValidation", "Unauthorized", "Forbidden")
"""Beginnings of the names of exceptions that asking again does not change."""
_REFUSED = (errno.EINVAL, errno.EACCES, errno.EPERM, errno.EROFS)


def shown(url: str) -> str:
    """A store's URL without a password or key in it."""
    parts = urlsplit(url)
    if not parts.username and not parts.password and not parts.query:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def check_url(url: str) -> str:
    """The URL, if this machine can open stores of its kind. Asks no store. Raises StoreRefused."""
    scheme = url.partition("://")[0]
    if "://" not in url:
        raise StoreRefused(f"{shown(url)!r} is no URL of fsspec; write file:///FOLDER or s3://BUCKET/FOLDER")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        wanted = _EXTRAS.get(scheme, "the one that fsspec names")
        raise StoreRefused(f"stores at {scheme}:// need a package: pip install '{wanted}' ({error})") from error
    except ValueError as error:
        raise StoreRefused(f"{scheme}:// is no kind of store that fsspec knows: write file:// or s3://") from error
    if scheme in ("file", "local") and not url.removeprefix(f"{scheme}://").startswith("/"):
        raise StoreRefused(
            f"{shown(url)!r} names no folder from the root; write {scheme}:///FOLDER, with three slashes"
        )
    return url


def check_shared(url: str) -> str:
    """The URL, as `check_url`, if stores of its kind are seen by more than one process. Raises StoreRefused."""
    if (scheme := url.partition("://")[0]) in _OF_ONE_PROCESS:
        raise StoreRefused(f"no other process sees a store at {scheme}://; write file:///FOLDER or s3://BUCKET/FOLDER")
    return check_url(url)


class Store:
    """Published things below a URL. All methods block, and raise StoreError with a sentence."""

    def __init__(self, url: str) -> None:
        """Asks nobody yet."""
        check_url(url)
        self.url = shown(url)
        self._given, self._opened = url, None

    @property
    def _fs(self) -> Any:
        if self._opened is None:
            self._opened = _open(self._given)
        return self._opened[0]

    def _at(self, path: str) -> str:
        assert self._fs
        assert self._opened is not None
        return f"{self._opened[1].rstrip('/')}/{path}"

    def check_rights(self) -> None:
        """Raises StoreRefused unless files may be listed, written, read and removed, and are created only once."""
        self.published()
        path = f"probes/{new_id()}"
        self.create(path, b"crosscope")
        try:
            self.read(path, 100)
            self.create(path, b"again")
        except StoreTaken:
            return
        finally:
            self.remove(path)
        raise StoreRefused(
            f"the store {self.url} lets a second writer replace what a first has created, so two jobs could publish "
            "one version: take a store that refuses a second If-None-Match: *, as AWS and MinIO do"
        )

    def published(self) -> list[Key]:
        """What is published, by kind, name and id."""
        return sorted(key for path in self._find(PUBLISHED) if (key := parse_key(path)) is not None)

    def uploads(self) -> dict[str, int]:
        """The folders of all uploads, below the store's root, each with the bytes in it."""
        found: dict[str, int] = {}
        for path, size in self._find(FILES).items():
            folder = "/".join(path.split("/")[:4])
            found[folder] = found.get(folder, 0) + size
        return found

    def _find(self, path: str) -> dict[str, int]:
        """The size of every file below a folder, by its path below the root."""
        with self._saying("list"):
            self._must_be_there()
            found = self._fs.find(self._at(path), detail=True)
        root = len(self._at(""))
        return {name[root:]: int(facts.get("size") or 0) for name, facts in found.items()}

    def _must_be_there(self) -> None:
        """Raises FileNotFoundError for a folder that is not there: a network disk that is not mounted, say."""
        if isinstance(self._fs, LocalFileSystem) and not self._fs.isdir(root := self._at("")):
            raise FileNotFoundError(errno.ENOENT, f"{root} is no folder: mount it, or make it")

    def read(self, path: str, at_most: int) -> bytes:
        """A small file. Raises StoreGone where there is none, and StoreRefused for one that is larger."""
        with self._saying("read", path):
            data = self._fs.cat_file(self._at(path), start=0, end=at_most + 1)
        if len(data) > at_most:
            raise EntryError(f"{self.url}/{path} has more than {at_most} bytes, which is no entry of crosscope")
        return data

    def entry(self, key: Key) -> Entry:
        """What was published under a key. Raises StoreGone where there is nothing, and EntryError, with its place."""
        try:
            entry = parse_entry(self.read(key.path, MAX_BYTES))
            if entry.key != key:
                raise EntryError(f"it is the entry of {entry.key.path}")
        except EntryError as error:
            raise EntryError(f"{key.path} of {self.url} cannot be used: {error}") from error
        return entry

    def create(self, path: str, data: bytes) -> None:
        """Writes a small file that must not be there yet. Raises StoreTaken if it is."""
        with self._saying("write", path):
            try:
                if isinstance(self._fs, LocalFileSystem):
                    self._create_local(Path(self._at(path)), data)
                else:
                    self._fs.pipe_file(self._at(path), data, mode="create")
            except FileExistsError as error:
                raise StoreTaken(f"{self.url}/{path} is there already") from error

    @staticmethod
    def _create_local(path: Path, data: bytes) -> None:
        """By a link, which is there whole, and which only one can make."""
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f".{new_id()}")
        try:
            with written.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _link(written, path)
        finally:
            written.unlink(missing_ok=True)

    def put(self, source: Path, path: str, tick: Tick = idle) -> FileFact:
        """Writes a file, and returns what it holds. An earlier one of that path is replaced."""
        digest, size = hashlib.sha256(), 0
        with self._saying("write", path), source.open("rb") as file:
            first = file.read(BLOCK_BYTES)
            if len(first) < BLOCK_BYTES and not isinstance(self._fs, LocalFileSystem):
                self._fs.pipe_file(self._at(path), first)
                tick(len(first))
                return FileFact(len(first), hashlib.sha256(first).hexdigest())
            with self._fs.open(self._at(path), "wb", block_size=BLOCK_BYTES) as written:
                for block in itertools.chain([first], iter(lambda: file.read(BLOCK_BYTES), b"")):
                    written.write(block)  # pyright: ignore[reportArgumentType]
                    digest.update(block)
                    size += len(block)
                    tick(len(block))
                if isinstance(self._fs, LocalFileSystem):
                    written.flush()
                    os.fsync(written.fileno())
        return FileFact(size, digest.hexdigest())

    def get(self, path: str, target: Path, expected: FileFact, tick: Tick = idle) -> None:
        """Reads a file into `target`, and compares it. Raises StoreGone, and EntryError where it is another file."""
        digest, size = hashlib.sha256(), 0
        with target.open("wb") as file:
            while size < expected.size:
                with self._saying("read", path):
                    block = self._fs.cat_file(self._at(path), start=size, end=min(expected.size, size + BLOCK_BYTES))
                if not block:
                    break
                file.write(block)
                digest.update(block)
                size += len(block)
                tick(len(block))
            file.flush()
            os.fsync(file.fileno())
        if size != expected.size or digest.hexdigest() != expected.sha256:
            raise EntryError(
                f"{self.url}/{path} is damaged: it has {size} bytes and the SHA-256 {digest.hexdigest()[:12]}…, but "
                f"was published with {expected.size} and {expected.sha256[:12]}…; publish it again"
            )

    def remove(self, path: str) -> None:
        """Removes a file; fine if it is gone."""
        try:
            with self._saying("remove", path):
                self._fs.rm_file(self._at(path))
        except StoreGone:
            pass

    def remove_all(self, folder: str) -> None:
        """Removes every file below a folder."""
        for path in self._find(folder):
            self.remove(path)

    @contextmanager
    def _saying(self, what: str, path: str = "") -> Generator[None]:
        """Turns whatever a file system raises into a StoreError."""
        try:
            yield
        except (StoreGone, StoreTaken, StoreRefused, StoreAway, FileExistsError):
            raise
        except FileNotFoundError as error:
            if path and not self._root_is_gone():
                raise StoreGone(f"{self.url}/{path} is gone") from error
            raise self._no_root(error) from error
        except Exception as error:
            if not _is_of_a_store(error):
                raise
            raise self._sentence(what, error) from error

    def _root_is_gone(self) -> bool:
        try:
            self._must_be_there()
            self._fs.find(self._at("probes"))  # a bucket that is not there says so; a folder without files is empty
        except FileNotFoundError:
            return True
        except Exception:
            return False
        return False

    def _no_root(self, error: FileNotFoundError) -> StoreRefused | StoreAway:
        if isinstance(self._fs, LocalFileSystem):
            return StoreAway(f"the store {self.url} does not answer: {error.strerror or error}")
        return StoreRefused(f"the store {self.url} is not there ({_brief(error)}): make the bucket, or name another")

    def _sentence(self, what: str, error: Exception) -> StoreRefused | StoreAway:
        refused = isinstance(error, OSError) and error.errno in _REFUSED
        if refused or isinstance(error, PermissionError) or type(error).__name__.startswith(_REFUSALS):
            return StoreRefused(
                f"the store {self.url} does not let this process {what} ({_brief(error)}): give its key the rights to "
                "list, read, write and remove there, or set another key (for s3:// AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreAway(f"the store {self.url} is full ({_brief(error)}): free some room there")
        return StoreAway(f"the store {self.url} does not answer: {_brief(error)}")


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path of its root."""
    scheme, options = url.partition("://")[0], {}
    if scheme in ("s3", "s3a"):
        options = {"config_kwargs": {**_PATIENCE, **conf.get(scheme, {}).get("config_kwargs", {})}}
    elif scheme in ("file", "local"):
        options = {"auto_mkdir": True}
    fs, root = url_to_fs(url, use_listings_cache=False, **options)
    if hasattr(fs, "retries"):
        fs.retries = 2  # s3fs tries again beside botocore
    return fs, root


def _link(written: Path, path: Path) -> None:
    try:
        os.link(written, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise StoreRefused(
            f"the disk of {path.parent} takes no hard links ({error.strerror}), by which something is published once: "
            "put the store on a file system that has them"
        ) from error


def _is_of_a_store(error: Exception) -> bool:
    """Whether an exception is about the store: the libraries' own, and not what a Tick raises or a bug of ours."""
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | TimeoutError) or module in (
        "botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "adlfs", "azure", "fsspec",
    )  # fmt: skip


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
