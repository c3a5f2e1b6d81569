"""Overrides on a command line, ``NAME=VALUE``: how to quote them, and which ones a sweep varies."""

import difflib
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from rankdistillm.errors import InputError

# The environment variable with the names that a sweep varies. A launcher's jobs inherit it; they
# do not see the command line.
SWEPT = "RANKDISTILLM_SWEPT"


def check_overrides(arguments: Sequence[str], groups: Collection[str] = ()) -> None:
    """Check the arguments of a command, and remember in `SWEPT` which names they sweep over.

    Raises `InputError` for an argument that Hydra cannot parse, with the quotes that it needs, for
    several values without ``-m``, and for a value of ``groups`` that cannot be a choice: 5, null.
    """
    parser = OverridesParser.create()
    swept = []
    is_sweep = any(a == "-m" or a.startswith("--mul") for a in arguments)
    for before, argument in zip(["", *arguments], arguments, strict=False):
        follows_option = before.startswith("-") and before != "-m"
        if argument.startswith("-") or (follows_option and "=" not in argument):
            continue
        if "=" not in argument and not argument.startswith("~"):
            raise InputError(f"{argument or repr('')}: not an option; write NAME=VALUE")
        try:
            override = parser.parse_override(argument)
        except HydraException as error:
            raise InputError(
                f"{argument}: has characters that need quotes; {_advice(parser, argument)}"
            ) from error
        if override.key_or_group in groups and _names_no_choice(override):
            raise InputError(f"{argument}: name one of the choices of the group; --help lists them")
        if override.is_sweep_override():
            swept.append(override.key_or_group)
            if not is_sweep and "," in argument and "hydra.mode" not in " ".join(arguments):
                raise InputError(
                    f"{argument}: several values are a sweep, which needs -m; "
                    f"for a comma in a text {_advice(parser, argument)}"
                )
    os.environ[SWEPT] = "\n".join(swept)


def _names_no_choice(override: Override) -> bool:
    is_set = not override.is_delete() and not override.is_sweep_override()
    return is_set and not isinstance(override.value(), str | list)


def explain_unknown(message: str, known: Callable[[], Iterable[str]]) -> str:
    """Hydra's message about an option or choice that does not exist, with the one that was meant.

    ``known`` lists the options, which takes reading all configs. Other messages stay as they are.
    """
    if found := re.search(r"In '(\w+)/(\w+)': Could not override '(\w+)'", message):
        group, choice, missing = found.groups()
        return f"{group}={choice} sets {missing}, which this command does not have; choose another"
    if found := re.search(
        r"Could not find '([^']+)/([^'/]+)' Available options in '[^']+': (.*?) Config search",
        message,
    ):
        group, given, choices = found.groups()
        names = choices.split()
        return f"{group}={given} is not one of {', '.join(names)}{meant(given, names)}"
    if (found := re.search(r"Could not override '([^']+)'", message)) and "To append" in message:
        return f"no option {found[1]}{meant(found[1], known())} (--help lists all)"
    return message


def meant(given: str, known: Iterable[str]) -> str:
    """``; did you mean NAME?`` for the known name that is closest, or nothing.

    Of a dotted name, the last part alone is enough.
    """
    names = list(known)
    within = [name for name in names if name.rpartition(".")[2] == given]
    close = difflib.get_close_matches(given, names, n=1)
    found = within if len(within) == 1 else close
    return f"; did you mean {found[0]}?" if found else ""


def varying(overrides: Sequence[str], swept: Collection[str] | None = None) -> str:
    """The overrides of a job that its sweep varies, as the name of a folder: ``loss=kl,seed=1``.

    ``swept``: the names that the sweep varies; by default, those in `SWEPT`.
    """
    parser = OverridesParser.create()
    swept = os.environ.get(SWEPT, "").split("\n") if swept is None else swept
    # Sweepers with their own search space leave no names in SWEPT; then all overrides count.
    varied = [o for o in overrides if parser.parse_override(o).key_or_group in swept] or overrides
    return ",".join(sorted(varied)).replace("/", "_")


def points(overrides: Sequence[str]) -> list[str]:
    """The folders of a sweep over the grid of these overrides, as `varying` names them.

    Raises `HydraException` for overrides that Hydra cannot parse, or only with its configs.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = {o.key_or_group for o in parsed if o.is_sweep_override()}
    values = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        for o in parsed
        if o.is_sweep_override()
    ]
    return [varying(point, swept) for point in product(*values)] if swept else []


def option(name: str, values: Sequence[str]) -> str:
    """``NAME=VALUE`` for these texts, whatever characters they have; several are a list."""
    texts = [_quoted(value) for value in values]
    return f"{name}={texts[0] if len(texts) == 1 else '[' + ','.join(texts) + ']'}"


def _advice(parser: OverridesParser, argument: str) -> str:
    """How to type an argument that Hydra cannot parse as it is."""
    name, _, value = argument.partition("=")

    def is_parsed(text: str) -> bool:
        with suppress(HydraException):
            return bool(parser.parse_override(text))
        return False

    def quoted_if_needed(text: str) -> str:
        is_one = is_parsed(f"x={text}") and not set(text) & set(",=")
        return text if is_one else _quoted(text)

    if value.count("{") != value.count("}") or value.count("[") != value.count("]"):
        return "put quotes around the whole option, or the shell splits it at spaces"
    candidates = [_quoted(value)]
    if value[:1] in ("{", "["):  # quote the values inside, so that it stays a list or group
        simple = r"""[^\s{}\[\],:'"][^{}\[\],:'"]*+(?!\s*:)"""
        candidates.insert(0, re.sub(simple, lambda found: quoted_if_needed(found[0]), value))
    if entries := re.fullmatch(r"""\{([^][{}'"]+)\}""", value):  # values that hold commas, too
        pairs = [e.partition(":") for e in re.split(r",\s*(?=[^\s,:]+\s*:)", entries[1])]
        inside = [f"{key.strip()}: {quoted_if_needed(text.strip())}" for key, _, text in pairs]
        candidates.insert(0, f"{{{', '.join(inside)}}}")
    for candidate in candidates:
        if is_parsed(f"{name}={candidate}"):
            return f"write {_for_shell(f'{name}={candidate}')}"
    return "write NAME=VALUE, with letters, digits and dots in the name"


def _for_shell(argument: str) -> str:
    """The argument as a shell takes it; in double quotes where it holds single ones."""
    if "'" in argument and not set(argument) & set('"$`\\!'):
        return f'"{argument}"'
    return shlex.quote(argument)


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()
