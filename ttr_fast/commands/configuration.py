"""The options of a command as TOML: keys are the options' names, tables their groups.

    data = "flights.csv"
    save-every = 100

    [train]
    learning-rate = 3e-4
    patience = "none"            where an option may be left open
"""

import difflib
import json
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from ttr_fast.errors import UserError, quoted

T = TypeVar("T")
PRESETS = Path(__file__).parents[1] / "presets"
NONE = "none"


def configuration_path(name: str) -> Path:
    """The file of this name, or of the preset. Raises UserError if there is neither."""
    presets = {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}
    if Path(name).is_file():
        return Path(name)
    if name in presets:
        return presets[name]
    near = difflib.get_close_matches(name, presets, n=1)
    hint = f" (did you mean {quoted(near[0])}?)" if near else ""
    raise UserError(f"{name}: there is no such file or preset{hint}, expected a TOML file or one of {', '.join(map(quoted, presets))}")


def from_toml(kind: type[T], path: Path, forbidden: tuple[str, ...] = ()) -> T:
    """The options in a file, defaults for those that it leaves out.

    Raises UserError, with the file and the key, for whatever is wrong with it.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return built(kind, content, path, "", forbidden)


def built(kind: type[T], content: dict[str, Any], path: Path, prefix: str, forbidden: tuple[str, ...] = ()) -> T:
    """A dataclass from a table."""
    types = {name.replace("_", "-"): hint for name, hint in get_type_hints(kind).items() if name not in forbidden}
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f"did you mean {quoted(prefix + near[0])}?" if near else f"expected one of {', '.join(types)}"
            raise UserError(f"{path}: there is no option {quoted(prefix + key)}: {hint}")
        if (field := name.replace("-", "_")) in values:
            raise UserError(f"{path}: {quoted(prefix + name)} is there twice, with '-' and with '_'")
        values[field] = value_of(types[name], value, path, prefix + key)
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def value_of(kind: Any, value: Any, path: Path, key: str) -> Any:
    """What a key says, as the type of its option."""
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{path}: {quoted(key)}: expected a table, got {quoted(str(value))}")
        return built(kind, value, path, f"{key}.")  # type: ignore[arg-type]  # is_dataclass is true of instances too
    if value == NONE and may_be_left_open(kind):
        return None
    try:
        return msgspec.convert(value, kind, dec_hook=path_of)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {quoted(key)}: {error}") from error


def path_of(kind: type, value: Any) -> Any:
    """Path is the one type that msgspec does not know."""
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
    return kind(value)


def may_be_left_open(kind: Any) -> bool:
    """Whether "none" stands for None; where a text or a path is expected, it is one, and None is said by leaving the key out."""
    return NoneType in get_args(kind) and not {str, Path} & set(get_args(kind))


def to_toml(options: Any, without: tuple[str, ...] = (), table: str = "") -> str:
    """All options but those in `without`, as from_toml reads them."""
    lines, tables = [], []
    hints = get_type_hints(type(options))
    for field in fields(options):
        name, value = field.name.replace("_", "-"), getattr(options, field.name)
        if field.name in without or (value is None and not may_be_left_open(hints[field.name])):
            continue
        if is_dataclass(value):
            tables.append(f"\n[{table}{name}]\n{to_toml(value, table=f'{table}{name}.')}")
        else:
            lines.append(f"{name} = {text_of(value)}\n")
    return "".join(lines + tables)


def text_of(value: Any) -> str:
    """A number, a truth value, a text, or several of them."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(text_of, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(NONE if value is None else str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
