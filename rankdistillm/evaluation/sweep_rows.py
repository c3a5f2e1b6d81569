"""The names of a sweep's rows: what tells trainings apart, whatever varies besides."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Options that do not change the student (data.test: nor its training).
IGNORED = (
    "output", "resume", "device", "token_budget", "state", "checkpoint", "wandb", "card",
    "data.test",
)  # fmt: skip
# Group of options -> the option that tells its choices apart.
GROUPS = {"loss": "loss._target_", "model": "model.path", "data": "data.train.run"}
MOST_ALONG = 8  # notes on options that vary along with those that name the rows
MOST_NAMED = 3  # rows in such a note

# group -> choice -> dotted option -> value
Choices = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class RowName:
    """The name of a row, and what it is sorted by."""

    text: str
    order: tuple[Any, ...]


def name_rows(
    trainings: Sequence[Mapping[str, Any]], over: Sequence[str], choices: Choices
) -> tuple[list[RowName], list[str]]:
    """A name for the row of each training, and notes on other options that vary along.

    Groups of options come first, then single ones in the order of the configs. An option that
    tells no further trainings apart is not named.
    """
    settings = [_settings(options, over, choices) for options in trainings]
    if all(options.get("max_steps") is not None for options in trainings):
        for setting in settings:  # steps that are given take the place of epochs
            setting.pop("epochs", None)
    _to_text(settings)
    parts = list(dict.fromkeys(part for setting in settings for part in setting))
    parts.sort(key=lambda part: part not in ("stage", *GROUPS))
    columns = {part: tuple(setting.get(part) for setting in settings) for part in parts}
    telling: list[str] = []
    classes: list[tuple[Any, ...]] = [()] * len(settings)
    for part, column in columns.items():
        refined = [(*c, value) for c, value in zip(classes, column, strict=True)]
        if len(set(refined)) > len(set(classes)):
            telling.append(part)
            classes = refined
    if not telling and "loss" in columns:
        telling = ["loss"]
    names = [
        RowName(
            ", ".join(
                setting[part] if part in GROUPS else f"{part}={setting[part]}"
                for part in telling
                if part in setting
            )
            or "all",
            tuple(_sortable(setting.get(part)) for part in telling),
        )
        for setting in settings
    ]
    return names, _varying_along(columns, telling, names, trainings, choices)


def _settings(options: Mapping[str, Any], over: Sequence[str], choices: Choices) -> dict[str, Any]:
    """Candidates for the name of a row: the stage, a text for each group, single options."""
    settings: dict[str, Any] = {"stage": options.get("stage")}
    for group, key in GROUPS.items():
        if not _is_ignored(key, over):
            choice = _choice(options, group, choices)
            settings[group] = f"{group}={choice}" if choice else f"{key}={typed(options.get(key))}"
    keys = GROUPS.values()
    return settings | {
        option: value
        for option, value in options.items()
        if option not in keys and not _is_ignored(option, over)
    }


def _varying_along(
    columns: Mapping[str, tuple[str | None, ...]],
    telling: Sequence[str],
    names: Sequence[RowName],
    trainings: Sequence[Mapping[str, Any]],
    choices: Choices,
) -> list[str]:
    """Notes on options that differ between rows without naming them.

    Left out are options that follow from the choice of a group, and copies of another option.
    """
    noted: dict[tuple[str | None, ...], str] = {}
    named = {columns[part] for part in telling}
    for part, column in columns.items():
        is_copy = column in named or column in noted
        if len(set(column)) == 1 or is_copy or part in GROUPS:
            continue
        if not all(_is_explained(part, options, choices) for options in trainings):
            noted[column] = part
    notes = []
    for column, part in list(noted.items())[:MOST_ALONG]:
        rows: dict[str, list[str]] = {}
        for value, name in zip(column, names, strict=True):
            rows.setdefault("not set" if value is None else value, []).append(name.text)
        said = (f"{v} for {_some(list(dict.fromkeys(those)))}" for v, those in rows.items())
        notes.append(f"varies along: {part}: {'; '.join(said)}")
    return notes


def _some(names: Sequence[str]) -> str:
    """The names; of many the first ones, and how many others there are."""
    if len(names) > MOST_NAMED + 1:
        names = [*names[:MOST_NAMED], f"{len(names) - MOST_NAMED} others"]
    return " and ".join(names)


def _choice(options: Mapping[str, Any], group: str, choices: Choices) -> str | None:
    """The choice that the options of a group stem from; None if it is not a known one."""
    key = GROUPS[group]
    agreeing = {
        name: sum(options.get(option) == value for option, value in those.items())
        for name, those in choices.get(group, {}).items()
        if those.get(key) is not None and those[key] == options.get(key)
    }
    return max(agreeing, key=lambda name: agreeing[name]) if agreeing else None


def _is_ignored(option: str, over: Sequence[str]) -> bool:
    return any(option == name or option.startswith(f"{name}.") for name in (*IGNORED, *over))


def _is_explained(part: str, options: Mapping[str, Any], choices: Choices) -> bool:
    """Whether an option has the value that the choice of its group gives it."""
    group = part.partition(".")[0]
    choice = _choice(options, group, choices) if group in GROUPS else None
    return choice is not None and choices[group][choice].get(part) == options.get(part)


def _to_text(settings: Sequence[dict[str, Any]]) -> None:
    """Make values text, as a user would type them; floats in four digits if these suffice."""
    exact: dict[str, set[float]] = {}
    for setting in settings:
        for part, value in setting.items():
            if isinstance(value, float):
                exact.setdefault(part, set()).add(value)
    short = {p for p, values in exact.items() if len({f"{v:.4g}" for v in values}) == len(values)}
    for setting in settings:
        for part, value in setting.items():
            is_short = isinstance(value, float) and part in short
            setting[part] = f"{value:.4g}" if is_short else typed(value)


def typed(value: Any) -> str:
    """A value as a user would type it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _sortable(value: str | None) -> tuple[int, float, str]:
    try:
        return 0, float(value or ""), ""
    except ValueError:
        return 1, 0.0, value or ""
