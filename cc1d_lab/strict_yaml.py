"""YAML without its surprises, and with the place of every value, so that an error can point at it.

Accepted is what reads the same in YAML 1.1, in YAML 1.2 and to a person: mappings with text keys, lists, text,
decimal numbers, true, false. Refused are anchors, aliases, tags, merge keys, duplicate keys, several documents,
numbers that are not finite, and unquoted words that some reader takes for something else (`1e-3`, `yes`, `010`,
`1:30`, a date).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 16
MAX_NODES = 20_000  # about a second of parsing
MAX_DIGITS = 18  # fits a 64-bit integer
MAX_TEXT = 4_000  # characters of one value

Location = tuple[str | int, ...]
Place = tuple[int, int]  # line and column, from 0


@dataclass
class Document:
    """Plain data, and where each part of it stands. A location is the way from the top: ('cases', 3, 'dim')."""

    source: str
    data: dict[str, Any]
    values: dict[Location, Place] = field(default_factory=dict)
    keys: dict[Location, Place] = field(default_factory=dict)

    def at(self, location: Location, key: bool = False) -> str:
        """`source:line:column` of a value, or of its key; of the nearest thing around it when it is not in the file."""
        marks = self.keys if key else self.values
        while location not in marks and location:
            location, marks = location[:-1], self.values
        return _at(self.source, marks.get(location))

    def error(self, location: Location, message: str) -> ConfigError:
        """A ConfigError that says where."""
        return ConfigError(f"{self.at(location)}: {message}")


def load(path: Path) -> Document:
    """Read and parse a file. ConfigError names the file, the line, the column and the remedy."""
    try:
        with path.open("rb") as f:
            raw = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
    return parse(raw, str(path))


def parse(raw: bytes, source: str) -> Document:
    """Parse a document; `source` is what errors call it."""
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{source}: more than {MAX_BYTES} bytes; split it into several files")
    try:
        text = raw.decode("utf-8-sig")
        _refuse_features(text, source)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as e:
        raise ConfigError(f"{source}: not UTF-8 at byte {e.start}; save it as UTF-8") from e
    except yaml.MarkedYAMLError as e:
        problem = " ".join(part for part in (e.context, e.problem) if part)
        raise ConfigError(f"{_at(source, _place(e.problem_mark))}: not valid YAML: {problem}") from e
    except yaml.reader.ReaderError as e:
        raise ConfigError(
            f"{source}: not text: character #{e.position} may not stand in YAML; save it as UTF-8 text"
        ) from e
    if not isinstance(root, yaml.MappingNode):
        where = _at(source, _start(root) if root else None)
        raise ConfigError(f"{where}: must be a mapping of keys to values, such as `variants: all`")
    document = Document(source, {})
    document.data = _build(document, root, ())
    return document


def _at(source: str, place: Place | None) -> str:
    return f"{source}:{place[0] + 1}:{place[1] + 1}" if place else source


def _place(mark: Any) -> Place | None:
    return (mark.line, mark.column) if mark else None


def _start(node: yaml.Node) -> Place:
    return (node.start_mark.line, node.start_mark.column)


def _refuse_features(text: str, source: str) -> None:
    """Walk the events, which costs no recursion and expands nothing, before any tree is built."""
    depth = documents = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        problem = _forbidden(event)
        if depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} levels deep"
        elif number > MAX_NODES:
            problem = f"more than {MAX_NODES} values; use `axes` instead of a list of cases"
        elif documents > 1:
            problem = "a second document starts here; one file holds one experiment"
        if problem:
            raise ConfigError(f"{_at(source, _place(event.start_mark))}: {problem}")


def _forbidden(event: Any) -> str:
    if isinstance(event, yaml.AliasEvent):
        return f"alias *{event.anchor}: aliases are not supported; write the value out"
    if getattr(event, "anchor", None):
        return f"anchor &{event.anchor}: anchors are not supported; write the value out"
    if getattr(event, "tag", None):
        return f"tag {event.tag}: tags are not supported; remove it"
    if len(getattr(event, "value", "")) > MAX_TEXT:
        return f"text of more than {MAX_TEXT} characters; shorten it"
    return ""


def _build(document: Document, node: yaml.Node, location: Location) -> Any:
    document.values[location] = _start(node)
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(document, node, location)
    if isinstance(node, yaml.SequenceNode):
        return [_build(document, child, (*location, i)) for i, child in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(document, node, location)


def _build_mapping(document: Document, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for key_node, value_node in node.value:
        # Until the key is known, an error in it is an error at its own place.
        document.values[location] = _start(key_node)
        key = _scalar(document, key_node, location) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str) or key == "<<":
            raise document.error(location, "a key must be a plain name")
        if key in built:
            first = document.keys[(*location, key)][0] + 1
            raise document.error(location, f"key {key!r} is given twice (first on line {first}); keep one")
        document.keys[(*location, key)] = _start(key_node)
        built[key] = _build(document, value_node, (*location, key))
    document.values[location] = _start(node)
    return built


_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?")
_SURPRISES = (
    (
        r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+",
        "is text to YAML 1.1 and a number to YAML 1.2; write it with a point, like 1.0e-3",
    ),
    (r"(?i:y|n|yes|no|on|off)", "is a truth value to YAML 1.1; write true or false, or quote it"),
    (r"(?i:[-+]?\.?(inf|nan|infinity))", "is not a finite number; leave the key out"),
    (r"[-+]?0[0-9_]+|[-+]?0[xXbBoO][0-9a-fA-F_]+", "is not decimal; write the decimal number"),
    (r"[-+]?[0-9][0-9_]*(:[0-9.]+)+", "is a base-60 number to YAML 1.1; quote it if it is text"),
    (r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*", "is a date to YAML; quote it if it is text"),
)
_REFUSED = tuple((re.compile(pattern), why) for pattern, why in _SURPRISES)


def _scalar(document: Document, node: yaml.ScalarNode, location: Location) -> str | int | float | bool | None:
    text: str = node.value
    if not all(c.isprintable() or c == "\n" for c in text):
        raise document.error(location, f"{text[:40]!r} holds a control character; remove it")
    if node.style is not None:  # quoted or a block: text, whatever it looks like
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    for pattern, why in _REFUSED:
        if pattern.fullmatch(text):
            raise document.error(location, f"{text[:40]} {why}")
    return _number(document, text, location) if _INT.fullmatch(text) or _FLOAT.fullmatch(text) else text


def _number(document: Document, text: str, location: Location) -> int | float:
    if _INT.fullmatch(text):
        if len(text.strip("+-").replace("_", "")) > MAX_DIGITS:
            raise document.error(location, f"{text[:40]} is too large; at most {MAX_DIGITS} digits")
        return int(text.replace("_", ""))
    value = float(text)
    if not math.isfinite(value):
        raise document.error(location, f"{text[:40]} is too large for a number")
    return value
