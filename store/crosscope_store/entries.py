"""What a store says about something that was published: its files, with their sizes and hashes. Does no I/O.

    published/<kind>/<name>/<id>.json         an Entry, written last and never changed
    files/<kind>/<name>/<upload>/<file>       its files, as they lie in the folder of a home

What has no entry does not exist for readers. The newest id of a name is the one that counts: ids sort by time.
"""

import re
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import TypeAdapter, ValidationError

from crosscope_proto.artefacts import NAME_PATTERN, SCHEMA_VERSION, look_folder, pair_folder, version_folder
from crosscope_store.errors import EntryError

Kind = Literal["crosscoders", "looks", "pairs"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PUBLISHED, FILES = "published", "files"
MANIFESTS: dict[Kind, str] = {"crosscoders": "crosscoder.json", "looks": "look.json", "pairs": "pair.json"}
"""The file of each kind that every reader has a copy of."""
MAX_BYTES = 4 << 20
"""Limit of the size of an entry, and of the manifest that every reader gets with it."""
_NAME = re.compile(NAME_PATTERN)
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_HASH = re.compile(r"[0-9a-f]{64}")
_STAMP = "%Y%m%dt%H%M%S%f"
_STAMP_LENGTH = 18


class Key(NamedTuple):
    """What names something that was published."""

    kind: Kind
    name: str
    id: str

    @property
    def path(self) -> str:
        """Where its entry lies below a store's root."""
        return f"{PUBLISHED}/{self.kind}/{self.name}/{self.id}.json"

    def folder(self, home: Path) -> Path:
        """Where its files lie in a home."""
        if self.kind == "crosscoders":
            return Path(version_folder(home, self.name, self.id))
        return Path((look_folder if self.kind == "looks" else pair_folder)(home, self.name))


@dataclass(frozen=True)
class FileFact:
    """A file's size and content."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """Something that was published."""

    kind: Kind
    name: str
    id: str
    upload: str
    """Folder of its files; nobody else has written into it."""
    files: dict[str, FileFact]
    """By path below the folder, with / between."""
    created_at: float
    """Seconds since 1970, by the clock of who published."""
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> Key:
        """What names it."""
        return Key(self.kind, self.name, self.id)

    def path_of(self, file: str) -> str:
        """Where one of its files lies below a store's root."""
        return f"{upload_path(self.kind, self.name, self.upload)}/{file}"


_ENTRY = TypeAdapter(Entry)


def entry_text(entry: Entry) -> str:
    """An entry as JSON."""
    return _ENTRY.dump_json(_ENTRY.validate_python(asdict(entry)), indent=1).decode()


def parse_entry(data: bytes) -> Entry:
    """The entry in some bytes. Raises EntryError, also for a file that would lie outside of its folder."""
    try:
        entry = _ENTRY.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise EntryError(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from error
    if entry.schema_version > SCHEMA_VERSION:
        raise EntryError(f"it has schema {entry.schema_version}, newer than {SCHEMA_VERSION}: update crosscope")
    for field in ("name", "id", "upload"):
        if not is_name(getattr(entry, field)):
            raise EntryError(f"{field} is {getattr(entry, field)[:60]!r}, which is no name")
    for file, fact in entry.files.items():
        if not is_safe(file) or fact.size < 0 or not _HASH.fullmatch(fact.sha256):
            raise EntryError(f"files: {file[:100]!r} is no path below a folder, or has no size and hash")
    _check_files(entry)
    return entry


def _check_files(entry: Entry) -> None:
    """Raises EntryError unless the files can lie in one folder, with a manifest among them."""
    manifest = MANIFESTS[entry.kind]
    if manifest not in entry.files:
        raise EntryError(f"files: there is no {manifest}")
    if entry.files[manifest].size > MAX_BYTES:
        raise EntryError(f"files: {manifest} has {entry.files[manifest].size} bytes, at most {MAX_BYTES} are read")
    folders = {file.rsplit("/", up)[0] for file in entry.files for up in range(1, file.count("/") + 1)}
    if both := sorted(folders & set(entry.files)):
        raise EntryError(f"files: {both[0][:100]!r} is a file and a folder")


def is_safe(file: str) -> bool:
    """Whether a path with / between stays below its folder and hides nothing."""
    parts = file.split("/")
    return len(parts) <= 8 and all(_PART.fullmatch(part) for part in parts)


def is_name(text: str) -> bool:
    """Whether a text can name something that is published, or be its id."""
    return _NAME.fullmatch(text) is not None


def parse_key(path: str) -> Key | None:
    """The key of an entry's path below a store's root; None for a path that is none."""
    parts = path.split("/")
    if len(parts) != 4 or parts[0] != PUBLISHED or not parts[3].endswith(".json"):
        return None
    name, identity = parts[2], parts[3].removesuffix(".json")
    is_named = is_name(name) and is_name(identity)
    return next((Key(kind, name, identity) for kind in KINDS if kind == parts[1] and is_named), None)


def is_upload(folder: str) -> bool:
    """Whether a path below a store's root is the folder of an upload, as `upload_path` and `new_id` name it."""
    parts = folder.split("/")
    return len(parts) == 4 and parts[0] == FILES and parts[1] in KINDS and age_s(parts[3], 0.0) < float("inf")


def upload_path(kind: Kind, name: str, upload: str) -> str:
    """Where the files of an upload lie below a store's root."""
    return f"{FILES}/{kind}/{name}/{upload}"


def stamp(now: float) -> str:
    """A time, seconds since 1970, as the beginning of an id: to the millisecond, and sorting by time."""
    return datetime.fromtimestamp(now, UTC).strftime(_STAMP)[:-3]


def stamp_after(newest: str | None, now: float) -> str:
    """The stamp of `now`, or that of a millisecond after the id `newest` if this is not older.

    The clocks of two machines differ, and what is published last must count.
    """
    if newest is None or stamp(now) > newest[:_STAMP_LENGTH]:
        return stamp(now)
    try:
        return stamp(_seconds(newest) + 0.0015)  # the half is for rounding
    except ValueError:  # an id that somebody else gave
        return stamp(now)


def _seconds(identity: str) -> float:
    """The time at which an id was given. Raises ValueError for one that begins with none."""
    return datetime.strptime(f"{identity[:_STAMP_LENGTH]}000", _STAMP).replace(tzinfo=UTC).timestamp()


def age_s(identity: str, now: float) -> float:
    """Seconds since an id was given; infinite for one that does not say."""
    try:
        return now - _seconds(identity)
    except ValueError:
        return float("inf")


def new_id() -> str:
    """An id that nobody else has."""
    return f"{stamp(time.time())}-{uuid.uuid4().hex[:12]}"
