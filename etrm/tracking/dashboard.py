"""The dashboard that the experiment guide asks for: four panels, as a workspace view of W&B."""

from __future__ import annotations

import importlib
from typing import Any

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
NAME = "ETRM"  # of the view


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
    view = views.Workspace(entity=entity, project=project, name=NAME, sections=sections)
    return str(view.save().url)
