# What Snakemake prints: the display of the study, and its summary at the end.
from snakemake.logging import logger

from etrm.errors import UserError
from etrm.study.summary import summary
from etrm.study.terminal.display import end, show


def ending():
    try:
        return summary(STUDY)
    except UserError as error:  # a damaged record is no reason to fail at the end
        return f"No summary: {error}"


DISPLAY = None
if workflow.is_main_process:
    DISPLAY = show(logger, workflow.output_settings, STUDY.study, ending)


onsuccess:
    end(DISPLAY, ending)


onerror:
    end(DISPLAY, ending)
