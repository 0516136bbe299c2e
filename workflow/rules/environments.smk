# What jobs run in: the environment of Snakemake itself, or the same versions by conda or Apptainer.
import os
import shlex
import sys
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

# Snakemake puts the interpreter unquoted into the shell commands of jobs.
if shlex.quote(sys.executable) != sys.executable:
    raise WorkflowError(
        f"{sys.executable}: found a Python interpreter whose path has a space or another character"
        " that is special to a shell, expected one without, since jobs are started through a"
        " shell; move the checkout, or make the environment in a folder without such characters"
        " (python3 -m venv FOLDER) and install the checkout there"
    )

if not os.access(".", os.W_OK):
    raise WorkflowError(
        f"{Path.cwd()}: found a working directory that cannot be written to, expected one that takes"
        " .snakemake and the results; add --directory FOLDER, a folder of yours"
    )

# Without the image every job would fail, with a message that does not say what to do.
if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    if not Path(IMAGE).exists():
        raise WorkflowError(
            f"{IMAGE}: no such file, expected the image that jobs run in with"
            " --software-deployment-method apptainer; build it once, in the checkout:"
            " apptainer build envs/etrm.sif envs/etrm.def"
        )
