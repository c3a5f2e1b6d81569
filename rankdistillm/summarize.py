"""Sum up trainings: ``python -m rankdistillm.summarize FOLDER`` prints one table of a sweep.

It also works while the sweep is running.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from rankdistillm.cli import choices_of, options_of, run_command
from rankdistillm.data.outputs import check_output, keep_apart, write_text
from rankdistillm.errors import InputError
from rankdistillm.evaluation.plots import check_plot, plot_repeated
from rankdistillm.evaluation.significance import check_settings
from rankdistillm.evaluation.sweep_rows import GROUPS, Choices
from rankdistillm.evaluation.sweeps import (
    Sweep,
    arrange,
    check_baselines,
    sweep_table,
)
from rankdistillm.evaluation.tables import format_of, print_table
from rankdistillm.evaluation.trainings import (
    PER_QUERY,
    UNREADABLE,
    Training,
    find_trainings,
    flat_options,
)
from rankdistillm.options import SUMMARIZE, check_options, texts_in
from rankdistillm.overrides import meant, option, points

log = logging.getLogger(__name__)


def summarize(config: DictConfig) -> None:
    """Print and write the table of the trainings in ``config.folder`` (conf/summarize.yaml)."""
    if config.get("folder", "") is None:
        raise InputError("no folder; give that of a sweep, such as outputs/distill/sweep_…")
    check_options(config, SUMMARIZE)
    folders = [Path(folder) for folder in texts_in(config.folder)]
    _check_settings(config, folders)
    trainings, problems = find_trainings(folders)
    if not trainings:
        raise InputError(
            f"{', '.join(map(str, folders))}: no training in it"
            + (f" ({'; '.join(problems)})" if problems else "")
            + "; give the folder of a sweep, such as outputs/distill/sweep_…"
        )
    _keep_apart(config, [training.folder / PER_QUERY for training in trainings])
    over = texts_in(config.over)
    _check_over(over, trainings)
    sweep = arrange(trainings, over=over, choices=_choices(trainings), metric=config.metric)
    sweep.notes += [*problems, *_not_there(trainings)]
    baselines = check_baselines(sweep, texts_in(config.baseline))
    settings = {name: config[name] for name in ("test", "correction", "alpha")}
    table = sweep_table(sweep, baselines, **settings)
    print_table(table)
    if config.table:
        write_text(Path(config.table), format_of(config.table)(table))
        log.info("wrote %s", config.table)
    if config.plot:
        _plot(sweep, baselines, Path(config.plot))


def _check_settings(config: DictConfig, folders: Sequence[Path]) -> None:
    """Raises `InputError` before anything is read."""
    check_settings(config.test, config.correction, config.alpha)
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: not a folder; give that of a sweep")
    if config.table:
        format_of(config.table)
    if config.plot:
        check_plot(Path(config.plot))
    for wanted, path in _keep_apart(config, folders):
        check_output(Path(path), wanted)


def _keep_apart(config: DictConfig, read: Sequence[Path]) -> list[tuple[str, str]]:
    outputs = [(f"{n}={config[n]}", config[n]) for n in ("table", "plot") if config[n] is not None]
    keep_apart(outputs, [(str(path), path) for path in read])
    return outputs


def _check_over(over: Sequence[str], trainings: Sequence[Training]) -> None:
    """Raises `InputError` for an option, or group of options, that no training has."""
    options = {tuple(name.split(".")) for t in trainings for name in t.options}
    known = {".".join(parts[:n]) for parts in options for n in range(1, len(parts) + 1)}
    for name in over:
        if name not in known:
            close = meant(name, sorted(known))
            raise InputError(f"over={name} is not an option of these trainings{close}")


def _choices(trainings: Sequence[Training]) -> Choices:
    """The choices of those groups of options that differ between the trainings."""
    choices: dict[str, dict[str, dict[str, Any]]] = {}
    for group, key in GROUPS.items():
        if group != "loss" and len({str(t.options.get(key)) for t in trainings}) == 1:
            continue
        # Hydra itself would take 0.1 seconds to compose one of them.
        choices[group] = {
            choice: flat_options(OmegaConf.create({group: options_of(group, choice)}))
            for choice in choices_of(group)
        }
    return choices


def _not_there(trainings: Sequence[Training]) -> Iterator[str]:
    """A line for each sweep some of whose trainings have no folder."""
    for folder in dict.fromkeys(training.folder.parent for training in trainings):
        file = folder / "multirun.yaml"  # written by Hydra
        try:
            loaded: Any = OmegaConf.to_container(OmegaConf.load(file))
            hydra, sweeper = loaded["hydra"], loaded["hydra"]["sweeper"]
            is_grid = sweeper["_target_"].endswith("BasicSweeper") and not sweeper["params"]
            # The user may have chosen other names of folders.
            is_named_by_points = "${varying:" in hydra["sweep"]["subdir"]
            is_known = is_grid and is_named_by_points
            expected = points(hydra["overrides"]["task"]) if is_known else []
        except FileNotFoundError:
            continue
        except HydraException:  # such as loss=glob(*): only Hydra's configs tell its values
            yield f"{file}: its trainings cannot be listed; not started ones are unknown"
            continue
        except UNREADABLE:
            yield f"{file}: damaged, so trainings that have not started are unknown"
            continue
        if missing := [name for name in expected if not os.path.exists(folder / name)]:
            yield f"not started, or refused at the start: {folder}: {' '.join(missing)}"


def _plot(sweep: Sweep, baselines: Sequence[str], path: Path) -> None:
    if not sweep.columns:
        raise InputError(f"{path}: nothing to draw yet; no training has measured anything")
    label, column = next(iter(sweep.columns.items()))
    lines = {row: [value for _, value in measured] for row, measured in column.values.items()}
    plot_repeated(
        lines,
        path,
        measurement=label,
        repetition=f"one {sweep.repetitions.removesuffix('s')}",
        baselines={row: sum(lines[row]) / len(lines[row]) for row in baselines if row in lines},
    )
    log.info("wrote %s", path)


def _as_options(arguments: Sequence[str]) -> list[str]:
    """The command line with folders as an option, and the rows of a baseline quoted."""
    folders, others = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, _, value = argument.partition("=")
        is_of_option = before.startswith("-") and before != "-m"  # such as --config-dir FOLDER
        is_option = argument.startswith(("-", "~")) or "=" in argument or not argument
        if not is_of_option and (os.path.isdir(argument) or not is_option):
            folders.append(argument)
        elif name == "baseline" and "=" in value and value[0] not in "'\"[":
            others.append(option(name, [value]))
        else:
            others.append(argument)
    return [*([option("folder", folders)] if folders else []), *others]


def main() -> None:
    """Entry point of ``python -m rankdistillm.summarize``."""
    sys.argv[1:] = _as_options(sys.argv[1:])
    run_command(summarize, "summarize")


if __name__ == "__main__":
    main()
