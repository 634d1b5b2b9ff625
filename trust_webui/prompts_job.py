"""Which prompts a run would use, before it is started."""

from __future__ import annotations

from collections.abc import Callable

from trust_engine.frontend.prompt_lists import PromptLists, prompt_lists
from trust_engine.frontend.run_report import sentence
from trust_engine.unlearn.run import Unlearning

from .host import current
from .jobs import Job
from .unlearn_job import Order


def list_prompts(order: Order) -> Callable[[Job], PromptLists]:
    """Return the job that asks what the model knows of the words, and lists a run's prompts."""

    def work(job: Job) -> PromptLists:
        host = current()
        with host.borrowed() as said:
            job.said += said
            job.at("reading prompts")
            run = Unlearning(host.lend(order.resolution, job.check), order.spec)
            run.model.encoder.encode([*run.questions, ""])  # while its encoder may have the GPU
            host.bring()
            for report in run.ask():
                job.tick(report.done, run.asking, report.stage)
            job.said += map(sentence, run.warnings)
            return prompt_lists(run)

    return work
