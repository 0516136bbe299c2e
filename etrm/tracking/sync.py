"""`etrm sync`: send a study's offline runs of W&B, and save the dashboard there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from etrm.errors import UserError
from etrm.tracking.dashboard import save_dashboard

MARK = ".wandb.synced"  # the end of the name of W&B's file beside a run that has been sent


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
            f" not sent: what W&B said is above. With a key (`wandb login`, or WANDB_API_KEY) and a"
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
