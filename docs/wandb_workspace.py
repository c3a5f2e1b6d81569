"""Make a workspace of Weights & Biases for a project of trainings.

    pip install wandb-workspaces && wandb login
    python docs/wandb_workspace.py ENTITY PROJECT [METRIC]

It shows the curves, one line for each choice of loss, model and data, with the spread over seeds;
the closing metrics as bars; the gain of each query; and the trainings of a sweep side by side.
METRIC is the option `validation.metric`, by default ndcg@10. Each call saves a new view.
"""

import sys
from collections.abc import Sequence

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

ROWS = ("first stage", "teacher", "student before", "student after")


def workspace(entity: str, project: str, metric: str = "ndcg@10") -> ws.Workspace:
    """The workspace, not saved yet."""

    def curve(title: str, *names: str, **options: object) -> wr.LinePlot:
        return wr.LinePlot(title=title, x="Step", y=list(names), **options)

    def bars(measured_on: str) -> wr.BarPlot:
        return wr.BarPlot(
            title=f"{metric}, {measured_on} queries",
            metrics=[f"{measured_on}/{metric}/{row}" for row in ROWS],
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )

    learning = [
        curve("validation", f"validation/{metric}"),
        curve("loss", "loss", smoothing_factor=0.6, smoothing_type="exponentialTimeWeighted"),
        curve("gradient norm", "grad_norm", log_y=True),
        curve("learning rate", "learning_rate"),
    ]
    computing = [
        curve("pairs per second", "pairs_per_second"),
        curve("share of padding", "padding"),
        curve("memory (MiB)", "memory_mib"),
    ]
    closing = [bars("test"), bars("validation")]
    gains = [wr.WeavePanelSummaryTable(table_name="gains")]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Students by {metric}",
        sections=[
            ws.Section(name="Learning", panels=learning, is_open=True),
            ws.Section(name="Closing metrics", panels=closing, is_open=True),
            ws.Section(name="Gains", panels=gains, is_open=True),
            ws.Section(name="Trainings", panels=[wr.RunComparer(diff_only=True)]),
            ws.Section(name="Computing", panels=computing),
        ],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Tags()],
            order=[ws.Ordering(ws.Summary("objective"), ascending=False)],
            pinned_columns=["summary:objective", f"summary:test/{metric}/student after"],
        ),
    )


def main(arguments: Sequence[str]) -> None:
    if len(arguments) not in (2, 3):
        sys.exit(__doc__)
    made = workspace(*arguments)
    made.save()
    print(made.url)


if __name__ == "__main__":
    main(sys.argv[1:])
