# What jobs run in: the environment of Snakemake itself, or the same versions by conda or Apptainer.
import os
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from etrm.runtime.environment import search_first

CHECKOUT = Path(workflow.basedir)
ENVIRONMENT = "../../envs/etrm.yaml"
# From the working directory, so that a checkout that is moved does not run everything again.
IMAGE = os.path.relpath(CHECKOUT / "envs/etrm.sif")


container: IMAGE


# Jobs import the checkout that they belong to, also where `etrm` is not installed, or another
# version of it is. The Snakemake of a job on another machine reads this as well.
search_first(CHECKOUT)

# Without the image every job would fail, with a message that does not say what to do.
if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    if not Path(IMAGE).exists():
        raise WorkflowError(
            f"{IMAGE}: no such file, expected the image that jobs run in with"
            " --software-deployment-method apptainer; build it once, in the checkout:"
            " apptainer build envs/etrm.sif envs/etrm.def"
        )
