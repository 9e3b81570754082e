"""The fields of a recipe's form, from the JSON schema of recipes: sections, kinds of fields, limits, defaults, help.

Knows no field by name but `kind`. Pure: draws nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Path = tuple[str | int, ...]
Schema = Mapping[str, Any]
FieldKind = Literal["text", "value", "choice", "flag"]
MAIN = "recipe"
"""The section of the fields that lie in no part of their own."""
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
_SHOWN_BELOW = 10**9
"""Larger limits are far beyond any use, and are not shown."""


@dataclass(frozen=True)
class Field:
    """One field of a form."""

    path: Path
    kind: FieldKind
    """text: any text; value: a number, a list or a mapping, as YAML; choice: one of `choices`; flag: yes or no."""
    help: str
    is_required: bool
    default: object
    """What the job takes where the recipe says nothing; None where that is nothing."""
    choices: tuple[str, ...] = ()
    limits: str = ""
    """The limits of a number, such as "≥ 1"."""
    is_tag: bool = False
    """Whether its value says which other fields its part has."""

    @property
    def dotted(self) -> str:
        """The path as the server names it in what is wrong: "data.0.path"."""
        return dotted(self.path)


@dataclass(frozen=True)
class Group:
    """Fields that stand together: a part of a recipe, or one entry of a list of parts."""

    path: Path
    title: str
    help: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Section:
    """A part of a form that is shown at a time. A list of parts has a group an entry, and can grow."""

    name: str
    groups: tuple[Group, ...]
    is_list: bool = False


def dotted(path: Sequence[str | int]) -> str:
    """A path with dots: "training.lr"."""
    return ".".join(map(str, path))


def kinds(schema: Schema) -> list[str]:
    """The kinds of recipes."""
    return list(schema["discriminator"]["mapping"])


def properties(schema: Schema, kind: str) -> Mapping[str, Schema]:
    """The fields of a kind of recipe by name; none of an unknown kind."""
    reference = schema["discriminator"]["mapping"].get(kind)
    return _resolve(schema, {"$ref": reference})["properties"] if reference else {}


def sections(schema: Schema, document: Mapping[str, Any]) -> list[Section]:
    """The sections of the form of a document, by its kind; none for an unknown kind."""
    reference = schema["discriminator"]["mapping"].get(document.get("kind"))
    if reference is None:
        return []
    whole = _resolve(schema, {"$ref": reference})
    plain: list[Field] = []
    found: list[Section] = []
    for name, each in whole["properties"].items():
        part = _resolve(schema, each)
        if "discriminator" in part or "properties" in part:
            found.append(Section(name, (_group(schema, (name,), each, document.get(name)),)))
        elif "properties" in (item := _resolve(schema, part.get("items", {}))):
            entries = document.get(name)
            entries = entries if isinstance(entries, list) else []
            groups = tuple(_group(schema, (name, i), item, entry) for i, entry in enumerate(entries))
            found.append(Section(name, groups, is_list=True))
        elif name != "kind":
            plain.append(_field(schema, (name,), each, whole))
    return [Section(MAIN, (Group((), "", whole.get("description", ""), tuple(plain)),)), *found]


def strangers(schema: Schema, document: Mapping[str, Any]) -> list[Path]:
    """The keys of a document that its kind, or the variant of a part, does not have."""
    found: list[Path] = [(name,) for name in document if name not in properties(schema, str(document.get("kind")))]
    for section in sections(schema, document)[1:]:
        entries = document.get(section.name)
        for group in section.groups:
            place = group.path[-1]
            entry = entries[place] if isinstance(entries, list) and isinstance(place, int) else entries
            known = {field.path[-1] for field in group.fields}
            if isinstance(entry, Mapping):
                found += [(*group.path, name) for name in entry if name not in known]
    return found


def _group(schema: Schema, path: Path, each: Schema, value: object) -> Group:
    part = _resolve(schema, each)
    fields: list[Field] = []
    help_text = each.get("description") or part.get("description", "")
    if "discriminator" in part:
        tag, mapping = part["discriminator"]["propertyName"], part["discriminator"]["mapping"]
        fields.append(Field((*path, tag), "choice", help_text, True, None, tuple(mapping), is_tag=True))
        chosen = value.get(tag) if isinstance(value, Mapping) else None
        if chosen not in mapping:
            return Group(path, dotted(path), help_text, tuple(fields))
        part = _resolve(schema, {"$ref": mapping[chosen]})
        help_text = part.get("description", "")
    fields += [
        _field(schema, (*path, name), inner, part)
        for name, inner in part["properties"].items()
        if "const" not in _resolve(schema, inner)
    ]
    return Group(path, dotted(path), help_text, tuple(fields))


def _field(schema: Schema, path: Path, each: Schema, owner: Schema) -> Field:
    part = _resolve(schema, each)
    default = each.get("default")
    required = path[-1] in owner.get("required", ())
    help_text = each.get("description") or part.get("description", "")
    options = [_resolve(schema, option) for option in part.get("anyOf", [part])]
    real = [option for option in options if option.get("type") != "null"]
    if len(real) == 1 and "enum" in real[0] and len(options) == 1:
        return Field(path, "choice", help_text, required, default, tuple(map(str, real[0]["enum"])))
    if len(options) == 1 and real[0].get("type") == "boolean":
        return Field(path, "flag", help_text, required, default)
    kind = "text" if len(real) == 1 and real[0].get("type") == "string" else "value"
    return (
        Field(path, kind, help_text, required, default, limits=", ".join(_limits(real[0])))
        if real
        else Field(path, kind, help_text, required, default)
    )


def _limits(part: Schema) -> Iterator[str]:
    for name, sign in _BOUNDS:
        bound = part.get(name)
        if bound is not None and abs(bound) < _SHOWN_BELOW:
            yield f"{sign} {bound:g}"


def _resolve(schema: Schema, part: Schema) -> Schema:
    """A part of a schema, behind its reference."""
    reference = part.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else part
