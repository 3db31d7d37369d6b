"""Run a command, and read its key=value settings: defaults <- preset <- file <- command line.

A command declares a frozen dataclass whose fields are its keys, see common.settings and
common.help_text.

Every command ends with 0: done; 1: a message says what failed; 2: wrong command line; 75: stopped
by a signal with the state saved, run the same command to go on; or 130: interrupted.
"""

import dataclasses
import errno
import os
import re
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from common import plain_yaml
from common.files import FULL
from common.settings import (
    Config,
    as_number,
    as_text_only,
    build,
    explain,
    field_type,
    in_words,
    takes_one,
    with_values,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again

RANK_0_PRINTS_S = 5.0  # how long the other ranks let rank 0 print what is wrong
MAX_YAML_BYTES = 10**6
UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # control characters but newlines
MOST_NAMED = 10  # files, cases or classes in a message


class UserError(Exception):
    """Something that a user can mend: printed as it is, without a traceback."""

    exit_code = EXIT_FAILED
    is_shared = False
    """Whether every rank raises it: then rank 0 alone prints it."""
    can_heal = True
    """Whether time may mend it, as it does a full disk: a job is tried again only then."""

    def __init__(self, message: str, *, can_heal: bool | None = None) -> None:
        super().__init__(message)
        if can_heal is not None:
            self.can_heal = can_heal


class UsageError(UserError):
    """A wrong command line: an unknown key, a wrong type, a missing path (which can heal)."""

    exit_code = EXIT_USAGE
    can_heal = False


def run(main: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Call `main` with the arguments and exit with its code; print a UserError as one message."""
    # Only torchrun has its ranks in one terminal; a RANK without it was left behind in a shell
    is_first = os.environ.get("RANK", "0") == "0" or "TORCHELASTIC_RUN_ID" not in os.environ
    try:
        code = main(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        # under torchrun a wrong command line is wrong on every rank alike
        is_shared = isinstance(error, UsageError) or error.is_shared
        if is_first or not is_shared:
            print(f"error: {escaped(str(error))}", file=sys.stderr)
        else:
            time.sleep(RANK_0_PRINTS_S)  # torchrun kills rank 0 as soon as another rank ends
        code = error.exit_code
    except KeyboardInterrupt:
        if is_first:
            print("interrupted; to go on, run the same command again", file=sys.stderr)
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        code = EXIT_FAILED
    except OSError as error:  # a full disk or a read-only folder, not a bug of ours
        print(f"error: {escaped(os_error_text(error))}", file=sys.stderr)
        code = EXIT_FAILED
    sys.exit(code)


def os_error_text(error: OSError) -> str:
    """Describe what the system refused, naming the file if known, and what to do."""
    text = f"{error.filename or 'I/O'}: {error.strerror or error}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        text += "; raise the limit of open files, as in `ulimit -n 1024`"
    if error.errno in FULL:
        text += "; make room on the disk of the output, and run the same command again"
    return text


def make_output_folder(out: Path) -> None:
    """Make the folder of out=, unless it exists. Raises UsageError if it cannot be made."""
    if out.is_file():
        raise UsageError(f"out={out}: is a file; name a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"out={out}: cannot be made: {error.strerror}; name a folder where you may write"
        ) from None


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return '1 field' or '2 fields'; give a `plural` that does not just add an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def named(names: Iterable[str]) -> str:
    """Join the first MOST_NAMED names, and count the others: 'Case_1, Case_2 and 3 more'."""
    listed = [printable(name) for name in names]
    more = len(listed) - MOST_NAMED
    return ", ".join(listed[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def printable(name: str) -> str:
    """Escape a name that would break a line or control the terminal."""
    return name if name.isprintable() else ascii(name)


def escaped(message: str) -> str:
    """Escape what would control the terminal in a message, which may have several lines."""
    return UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", message)


def wants_help(argv: Sequence[str]) -> bool:
    """Return whether the arguments ask for the help text."""
    return any(argument in ("-h", "--help", "help") for argument in argv)


def load(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    preset_folder: Path | None = None,
    is_record: bool = False,
) -> Config:
    """Build a `config_class` from defaults, `preset=`, `config=` and the other key=value arguments.

    If the class has a method check_given(typed, in_file), that is asked last. It is told which keys
    a user has typed, and which are in the file of config=, and may refuse them by ValueError; not
    where `is_record`: then a program has written the arguments.

    Raises UsageError that lists unknown keys and wrong values, or names missing or refused values.
    """
    given, wrong = split_arguments(argv)
    merged: Any = OmegaConf.structured(config_class)
    merged, keys_in_file, wrong_in_files = with_files(merged, config_class, given, preset_folder)
    wrong += wrong_in_files
    for key, value in given.items():
        try:
            merged = with_setting(merged, config_class, key, value)
        except UsageError as error:
            wrong.append(str(error))
    config = finished(config_class, merged, wrong)
    check_given = getattr(config, "check_given", None)
    if check_given and not is_record:
        try:
            check_given(typed_keys(config_class, given), keys_in_file)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return config


def from_values(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a `config_class` from a file's keys; values are texts or have their types.

    Raises UsageError as load() does.
    """
    merged, wrong = with_values(OmegaConf.structured(config_class), config_class, values)
    return finished(config_class, merged, wrong)


def finished(config_class: type[Config], merged: Any, wrong: Sequence[str]) -> Config:
    """Make the dataclass of a merged configuration. Raises UsageError, first for the `wrong`."""
    if wrong:
        raise UsageError(listed(wrong))
    try:
        values = OmegaConf.to_container(merged, throw_on_missing=True)
        return build(config_class, typing.cast(dict[str, Any], values))
    except MissingMandatoryValue:
        missing = [f"{key}=..." for key in OmegaConf.missing_keys(merged)]
        raise UsageError(f"needs {' and '.join(sorted(missing))}; --help lists every key") from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def listed(wrong: Sequence[str]) -> str:
    """Put one mistake into one line, several into a line each."""
    if len(wrong) == 1:
        return wrong[0]
    return f"{len(wrong)} wrong settings:" + "".join(f"\n  {line}" for line in wrong)


def with_files(
    merged: Any, config_class: type, given: Mapping[str, str], preset_folder: Path | None
) -> tuple[Any, set[str], list[str]]:
    """Set the keys of preset= and config=; also return the keys that config= has, and an error for
    each wrong one.

    If no preset is typed, the one that the file of config= names counts.
    """
    keys: set[str] = set()
    wrong: list[str] = []
    file = given.get("config") if field_type(config_class, "config") else None
    try:
        in_file = read_yaml(Path(file)) if file else {}
        preset = given.get("preset", in_file.get("preset"))
        if preset_folder and preset:
            path = preset_path(preset_folder, preset)
            merged, wrong = with_file(merged, config_class, path)
        if file:
            merged, wrong_in_file = with_file(merged, config_class, Path(file))
            wrong += wrong_in_file
            is_whole = in_file.keys() >= {field.name for field in dataclasses.fields(config_class)}
            keys = dotted_keys(in_file)
            if in_file.get("config") and not is_whole:  # a run's own file keeps its config= too
                wrong.append(f"{file}: config: another file is not read; copy its keys into this")
    except UsageError as error:
        wrong.append(str(error))
    return merged, keys, wrong


def typed_keys(config_class: type, given: Mapping[str, str]) -> set[str]:
    """Return the keys that were typed, also those within model={width: 8}."""
    keys = set()
    for key, value in given.items():
        is_group = dataclasses.is_dataclass(field_type(config_class, key))
        keys |= dotted_keys({key: plain_yaml.parse(value) if is_group else value})
    return keys


def dotted_keys(values: Mapping[str, Any]) -> set[str]:
    """Return the keys of a file as they are typed: model.width for width below model."""
    keys = set()
    for key, value in values.items():
        within = dotted_keys(value) if isinstance(value, dict) else set()
        keys |= {f"{key}.{name}" for name in within} or {key}
    return keys


def with_file(merged: Any, config_class: type, path: Path) -> tuple[Any, list[str]]:
    """Set a file's keys; also return an error for each wrong one. Raises UsageError."""
    merged, wrong = with_values(merged, config_class, read_yaml(path))
    return merged, [f"{path}: {line}" for line in wrong]


def with_setting(merged: Any, config_class: type, key: str, value: str) -> Any:
    """Set one key. Raises UsageError that names the key and what it takes."""
    setting, parsed = OmegaConf.create({}), parse_value(config_class, key, value)
    try:
        OmegaConf.update(setting, key, as_text_only(parsed))
        return OmegaConf.unsafe_merge(merged, setting)  # merge() would copy it, for each setting
    except (OmegaConfBaseException, TypeError) as error:
        raise UsageError(f"{key}={value}: {explain(config_class, key, error)}") from None


def split_arguments(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Parse key=value arguments; the last of a repeated key wins.

    Also return an error for each malformed argument.
    """
    given, wrong = {}, []
    for argument in argv:
        try:
            key, value = split_argument(argument)
            given[key] = value
        except UsageError as error:
            wrong.append(str(error))
    return given, wrong


def split_argument(argument: str) -> tuple[str, str]:
    """Split 'key=value'. Raises UsageError."""
    key, equals, value = argument.partition("=")
    key = key.removeprefix("--")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise UsageError(f"'{argument}' is not key=value; --help lists every key")
    return key, value


def parse_value(config_class: type, key: str, value: str) -> Any:
    """Return a text or a list of texts, which omegaconf turns into the field's type.

    One text without brackets is a list only for a key of OF_ONE. Raises UsageError.
    """
    hint = field_type(config_class, key)
    if hint in (str, None):
        return value
    if takes_one(config_class, key) and re.fullmatch(r"[^\[{\"'\s,][^,]*", value):
        return [value]
    try:
        parsed = plain_yaml.parse(value)
    except yaml.YAMLError:
        raise UsageError(f"{key}={value}: expected {in_words(hint)}") from None
    if typing.get_origin(hint) in (list, tuple):
        if not isinstance(parsed, list):
            raise UsageError(f"{key}={value}: takes a list, as in {key}=[{value}]")
        if colons := [entry for entry in parsed if isinstance(entry, dict)]:
            names = ",".join(
                f'"{name}: {rest}"' for entry in colons for name, rest in entry.items()
            )
            raise UsageError(f"{key}={value}: put names that hold a colon into quotes: '[{names}]'")
        if not all(isinstance(entry, str) for entry in parsed):
            raise UsageError(f"{key}={value}: expected {in_words(hint)}")
    return as_number(config_class, key, parsed)


def preset_path(folder: Path, name: str) -> Path:
    """Return the file of a preset. Raises UsageError that lists the known presets."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in folder.glob("*.yaml")))
        raise UsageError(f"preset={name}: no such preset; there are: {known}")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys, with values as texts. Raises UsageError."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UsageError(f"{path}: larger than {MAX_YAML_BYTES} bytes: not a settings file")
        content = plain_yaml.parse(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds no keys; expected one 'key: value' per line")
    return content


def as_yaml(config: Any) -> str:
    """Write the whole configuration as YAML; read_yaml() returns the same texts."""
    return plain_yaml.dump(dataclasses.asdict(config))
