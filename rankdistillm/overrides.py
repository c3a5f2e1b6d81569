"""Overrides on a command line, ``NAME=VALUE``: how to quote them, and which ones a sweep varies."""

import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from rankdistillm.errors import InputError

# The environment variable with the names that a sweep varies. A launcher's jobs inherit it; they
# do not see the command line.
SWEPT = "RANKDISTILLM_SWEPT"


def check_overrides(arguments: Sequence[str]) -> None:
    """Check the arguments of a command, and remember in `SWEPT` which names they sweep over.

    Raises `InputError` for an argument that Hydra cannot parse, with the quotes that it needs, and
    for several values without ``-m``.
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
        if override.is_sweep_override():
            swept.append(override.key_or_group)
            if not is_sweep and "," in argument and "hydra.mode" not in " ".join(arguments):
                raise InputError(
                    f"{argument}: several values are a sweep, which needs -m; "
                    f"for a comma in a text {_advice(parser, argument)}"
                )
    os.environ[SWEPT] = "\n".join(swept)


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
        return f"{group}={given} is not one of {', '.join(names)}{_meant(given, names)}"
    if (found := re.search(r"Could not override '([^']+)'", message)) and "To append" in message:
        return f"no option {found[1]}{_meant(found[1], known())} (--help lists all)"
    return message


def _meant(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def varying(overrides: Sequence[str]) -> str:
    """The overrides of a job that its sweep varies, as the name of a folder: ``loss=kl,seed=1``."""
    parser = OverridesParser.create()
    swept = os.environ.get(SWEPT, "").split("\n")
    # Sweepers with their own search space leave no names in SWEPT; then all overrides count.
    varied = [o for o in overrides if parser.parse_override(o).key_or_group in swept] or overrides
    return ",".join(sorted(varied)).replace("/", "_")


def _advice(parser: OverridesParser, argument: str) -> str:
    """How to type an argument that Hydra cannot parse as it is."""
    name, _, value = argument.partition("=")

    def is_parsed(text: str) -> bool:
        with suppress(HydraException):
            return bool(parser.parse_override(text))
        return False

    candidates = [_quoted(value)]
    if value[:1] in ("{", "["):  # quote the values inside, so that it stays a list or group
        candidates.insert(
            0,
            re.sub(
                r"""[^\s{}\[\],:'"][^{}\[\],:'"]*+(?!\s*:)""",
                lambda found: found[0] if is_parsed(f"x={found[0]}") else _quoted(found[0]),
                value,
            ),
        )
    for candidate in candidates:
        if is_parsed(f"{name}={candidate}"):
            return f"write {shlex.quote(f'{name}={candidate}')}"
    return "write NAME=VALUE, with letters, digits and dots in the name"


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()
