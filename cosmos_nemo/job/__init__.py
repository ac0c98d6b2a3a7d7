"""One invocation, checked and decided: the card, the files, the plan, the device. No weight is read here."""

from cosmos_nemo.job.describe import describe
from cosmos_nemo.job.job import Job
from cosmos_nemo.job.prepare import PERSON_ERRORS, device_of, prepare

__all__ = ["PERSON_ERRORS", "Job", "describe", "device_of", "prepare"]
