"""`etrm sync`: send a study's offline runs of W&B, and save the dashboard there."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etrm.errors import UserError

MARK = ".wandb.synced"  # the end of the name of W&B's file beside a run that has been sent
# Titles and metrics as in the guide, "What to monitor in W&B dashboard".
PANELS: dict[str, tuple[str, ...]] = {
    "Success Metrics": ("train/exact_accuracy", "all.exact_accuracy", "ARC/pass@1"),
    "Encoder Health": ("train/encoder_cross_sample_var", "grad/encoder_norm", "grad/total_norm"),
    "Learning Dynamics": ("train/lm_loss", "train/q_halt_loss", "train/steps"),
    "Encoder Statistics": (
        "train/encoder_output_norm",
        "train/encoder_output_std",
        "train/encoder_token_std",
    ),
}
VIEW = "ETRM"  # the name of the dashboard


def offline_runs(folder: Path) -> list[Path]:
    """Return the folders of offline runs in W&B's `folder` that were not sent, in time order.

    A run that was interrupted has several, of one id.
    """
    runs = sorted((folder / "wandb").glob("offline-run-*"))  # their names begin with the time
    return [run for run in runs if not any(run.glob(f"*{MARK}"))]


def sync(folder: Path, project: str, environment: Mapping[str, str]) -> str:
    """Send the offline runs in W&B's `folder`; return their number and place as text.

    W&B sends those of one id one after the other, in the order of their times. Raises `UserError`
    where W&B is not installed, or fails.
    """
    runs = offline_runs(folder)
    if not runs:
        return f"{folder}: nothing to send: there is no offline run that was not sent before"
    if importlib.util.find_spec("wandb") is None:
        raise UserError(f"{folder}: {len(runs)} offline runs wait, but wandb is not installed")
    command = [sys.executable, "-m", "wandb", "sync", "--project", project, str(folder / "wandb")]
    # An offline mode that is asked for is meant for runs.
    online = {name: value for name, value in environment.items() if name != "WANDB_MODE"}
    code = subprocess.run(command, env=online, check=False).returncode
    left = offline_runs(folder)
    if code or left:
        raise UserError(
            f"wandb sync ended with code {code}, and {len(left)} of {len(runs)} offline runs are"
            f" not sent: the reason is above. With a key (`wandb login`, or WANDB_API_KEY) and a"
            " network, the same command sends the rest"
        )
    return f"{len(runs)} offline runs sent to the project {project}"


def dashboard(project: str) -> str:
    """Save the guide's four panels in the project, and return where they are, or why they are not.

    A mirror only: nothing fails without it.
    """
    try:
        import wandb

        entity = wandb.Api().default_entity
        return f"Dashboard: {save_dashboard(entity, project)}"
    except ImportError as error:
        return f"No dashboard ({error}): pip install wandb-workspaces, and call it again"
    except Exception as error:  # of a server
        return f"No dashboard ({error})"


def save_dashboard(entity: str, project: str) -> str:
    """Save the view in a W&B project, and return its address.

    Raises `ImportError` where the package wandb-workspaces is not installed, which alone can.
    """
    panels: Any = importlib.import_module("wandb_workspaces.reports.v2")
    views: Any = importlib.import_module("wandb_workspaces.workspaces")
    sections = [
        views.Section(
            name=title,
            is_open=True,
            panels=[panels.LinePlot(title=metric, x="Step", y=[metric]) for metric in metrics],
        )
        for title, metrics in PANELS.items()
    ]
    view = views.Workspace(entity=entity, project=project, name=VIEW, sections=sections)
    return str(view.save().url)
