"""An executor that performs trials in this process, one after the other."""

from perdure.sweeps.executor import Outcome
from perdure.sweeps.trial import perform


class InProcess:
    """Perform trials here as other processes do, from JSON, and remember which."""

    def __init__(self):
        self.performed = []

    def connect(self):
        pass

    def perform(self, jobs, folder):
        for job in jobs:
            self.performed.append(job.trial)
            yield None
            yield Outcome(**perform(job.plain()))
