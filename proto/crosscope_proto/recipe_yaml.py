"""Turns a YAML text into plain values, with limits on its size, depth, number of values and time to read.

The values are those that JSON knows: mappings with texts as keys, lists, texts, whole numbers, floats, booleans and
None. Dates stay texts. An alias or a merge key counts as all the values that it stands for, so a short text cannot
become a large value. Knows nothing about recipes.
"""

import time
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

MAX_BYTES = 65_536
"""Limit of a text in UTF-8 bytes; SubmitJobRequest.recipe_yaml has the same."""
MAX_NODES = 10_000
"""Limit of the number of values. Keys count, and an alias counts as all that it stands for."""
MAX_DEPTH = 32
"""Limit of lists and mappings inside one another."""
MAX_SECONDS = 5.0
"""Limit of the thread's own computing time. A text within the other limits takes a tenth of it."""
_MAX_INT = 2**64
_PLAIN_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
_MERGE = "tag:yaml.org,2002:merge"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class YamlTextError(ValueError):
    """A text that is not YAML, or that is beyond a limit. The message names the line if it is known."""


def load_yaml(text: str) -> object:
    """The value of a YAML text. Raises YamlTextError."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise YamlTextError(f"has {size} bytes, but may have at most {MAX_BYTES}")
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        raise YamlTextError(_sentence(error)) from error
    except (yaml.YAMLError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, YamlTextError):
            raise
        # PyYAML reads escapes, tags and directives by int(), chr() and the like, and does not catch their errors.
        where = f"line {loader.line + 1}: " if loader is not None else ""
        raise YamlTextError(f"{where}not valid YAML: {' '.join(str(error).split())[:300]}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _sentence(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    what = " ".join(part for part in (error.context, error.problem) if part)
    return f"{_at(mark)}not valid YAML: {' '.join(what.split())[:300]}"


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}: " if mark is not None else ""


def _refusal(node: Node | None, text: str) -> YamlTextError:
    return YamlTextError(f"{_at(node.start_mark) if node else ''}{text}")


class _Loader(yaml.SafeLoader):
    """Counts what it composes, and constructs plain values only."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_nodes = self._depth = 0
        self._sizes: dict[Node, int] = {}
        """Number of values in each node that was composed; an alias of it counts as many."""
        self._ends_at = time.thread_time() + MAX_SECONDS

    def fetch_more_tokens(self) -> None:
        if time.thread_time() > self._ends_at:
            raise YamlTextError(f"line {self.line + 1}: takes longer than {MAX_SECONDS:g} s to read; shorten it")
        super().fetch_more_tokens()

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        anchor = None if is_alias else self.peek_event().anchor
        if anchor in self.anchors:
            raise YamlTextError(f"{_at(self.peek_event().start_mark)}the anchor &{anchor} is set twice")
        mark, before = self.peek_event().start_mark, self._num_nodes
        self._depth += 1
        if self._depth > MAX_DEPTH + 1:
            raise YamlTextError(f"{_at(mark)}more than {MAX_DEPTH} lists and mappings stand inside one another")
        self._count(1, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if not is_alias:
            self._sizes[node] = self._num_nodes - before
        elif node in self._sizes:
            self._count(self._sizes[node] - 1, mark)
        else:
            raise YamlTextError(f"{_at(mark)}an alias stands inside the value that it names")
        return node

    def _count(self, num: int, mark: Any) -> None:
        self._num_nodes += num
        if self._num_nodes > MAX_NODES:
            text = f"holds more than {MAX_NODES} values, aliases and merge keys counted with all that they stand for"
            raise YamlTextError(f"{_at(mark)}{text}")

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, YamlTextError):
                raise
            kind = node.tag.rpartition(":")[2]
            why = "has too many digits" if "integer string conversion" in str(error) else f"is not a valid {kind}"
            raise _refusal(node, f"{_shown(node)} {why}") from error
        if isinstance(value, str):
            self._check_text(node, value)
        elif isinstance(value, int) and abs(value) >= _MAX_INT:
            raise _refusal(node, f"{_shown(node)} is too large: a whole number must lie within ±2^64")
        return value

    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, MappingNode):
            self._check_keys(node)
        return super().construct_mapping(node, deep)  # pyright: ignore[reportArgumentType] (it refuses others itself)

    def _check_keys(self, node: MappingNode) -> None:
        """Refuses keys that are not texts, and a key that occurs twice: its first value would be lost in silence."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            name = self.construct_object(key, True) if isinstance(key, ScalarNode) else key
            if not isinstance(name, str):
                raise _refusal(key, f"the key {_shown(key)} is not a text; put it in quotes")
            if name in seen:
                raise _refusal(key, f"the key {_shown(key)} occurs twice in one mapping")
            seen.add(name)

    @staticmethod
    def _check_text(node: Node, value: str) -> None:
        for character in value:
            if character == "\0" or "\ud800" <= character <= "\udfff":
                raise _refusal(node, f"a text holds the character U+{ord(character):04X}, which no text may hold")


def _shown(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        return "a mapping" if isinstance(node, MappingNode) else "a list"
    text = repr(node.value)
    return text if len(text) <= 40 else f"{text[:36]}…'"


_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN_TAGS
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
