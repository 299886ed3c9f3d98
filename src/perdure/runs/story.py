"""The whole story: for each task of a stream, learn it, combine, measure, save; or go on where it was stopped.

Several processes all learn and measure; the first alone writes.
"""

from dataclasses import replace
from pathlib import Path

from perdure.evaluation.measure import measure
from perdure.evaluation.progress_bar import Progress
from perdure.evaluation.system import System
from perdure.learning.loop import Session
from perdure.learning.stopping import stopping
from perdure.runs.job import Plan
from perdure.runs.next_task import learn_next
from perdure.runs.resume import opened, resumed
from perdure.runs.writer import writing


def run(plan: Plan, output: Path, *, change: bool = False, quiet: bool = True) -> System:
    """Learn what a run has not learned yet, and measure what is not measured; `change`: by other settings."""
    plan = opened(output, plan, change=change)
    with writing(output) as writer, stopping(writer.hint) as stop:
        system, inside, due = resumed(writer.state, plan)
        writer.begin(plan, inside)
        quiet = quiet or not writer.writes
        session = Session(plan.seed, writer.event, writer.unfinished, inside, stop, output, quiet)
        whole = Progress(
            "The run", len(plan.stream), done=len(system.learned), quiet=quiet, bar=False
        )
        for step in range(len(plan.stream) + 1):
            if step > len(system.learned):
                system = system.with_task(learn_next(system, plan, session))
                session = replace(session, resume=None)
                with stop.later():
                    writer.task(system)
            if step in due:
                writer.measurement(
                    measure(
                        system.until(step), plan.stream, plan.evaluation, plan.seed, quiet=quiet
                    )
                )
            whole.to(step, f"{step} of {len(plan.stream)} tasks", reached=step > whole.first)
    return system
