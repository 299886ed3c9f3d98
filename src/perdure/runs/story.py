"""The main loop of a run: learn, combine, measure and save each task, or continue a stopped run.

All processes learn and measure; only the first one writes.
"""

from dataclasses import replace
from pathlib import Path

from perdure.evaluation.measure import measure
from perdure.evaluation.progress_bar import Progress
from perdure.evaluation.system import System
from perdure.learning import engine
from perdure.learning.loop import Session
from perdure.learning.memory import explained
from perdure.learning.stopping import stopping
from perdure.runs.job import Plan
from perdure.runs.next_task import learn_next
from perdure.runs.resume import opened, resumed
from perdure.runs.writer import writing


def run(plan: Plan, output: Path, *, change: bool = False, quiet: bool = True) -> System:
    """Learn the tasks that a run has not learned yet, and measure the steps that are due.

    Parameters
    ----------
    change
        Allow the plan to differ from the recipe of an existing run; the plan's recipe
        then replaces it.
    """
    # the folder is created, or compared with the plan, before locking: `writing` needs a run
    plan = opened(output, plan, change=change)
    engine.place(plan.backbone, plan.training)
    with (
        writing(output) as writer,
        stopping(writer.hint) as stop,
        explained(plan.backbone, plan.training),
    ):
        system, inside, due = resumed(writer.state, plan)
        writer.begin(plan, inside)
        quiet = quiet or not writer.writes
        session = Session(
            seed=plan.seed,
            log=writer.event,
            keep=writer.unfinished,
            resume=inside,
            stop=stop,
            folder=output,
            quiet=quiet,
        )
        tasks = len(plan.stream)
        progress = Progress(
            "The run",
            tasks,
            done=len(system.learned),
            quiet=quiet,
            bar=False,
        )
        # step 0 is before any task; steps of learned tasks may still have to be measured
        for step in range(tasks + 1):
            if step > len(system.learned):
                learned = learn_next(system, plan, session)
                system = system.with_task(learned)
                # the checkpoint was for this task: the next one starts from the beginning
                session = replace(session, resume=None)
                with stop.later():  # a signal waits until the task is saved
                    writer.task(system)
            if step in due:
                measured = measure(
                    system.until(step),
                    plan.stream,
                    plan.evaluation,
                    plan.seed,
                    never=plan.never,
                    quiet=quiet,
                )
                writer.measurement(measured)
            said = f"{step} of {tasks} tasks"
            progress.to(step, said, reached=step > progress.first)
    return system
