"""Small tasks for language models: closed ones, and ones that are answered with free text."""

from datasets import Dataset

from perdure import Task, TaskStream

EXAMPLES = 8


def closed(name: str, words: tuple[str, ...], score: str = "accuracy") -> Task:
    """A task whose answer is one of some words."""
    rows = Dataset.from_dict(
        {
            "text": [f"{name} {number}" for number in range(EXAMPLES)],
            "label": [number % len(words) for number in range(EXAMPLES)],
        }
    )
    return Task(name, words, rows, rows, rows, score=score)


def free(name: str, score: str = "rouge_l") -> Task:
    """A task that is answered with free text."""
    rows = Dataset.from_dict(
        {
            "text": [f"say {name} {number}" for number in range(EXAMPLES)],
            "target": [f"{name} {number % 3}" for number in range(EXAMPLES)],
        }
    )
    return Task(name, (), rows, rows, rows, score=score)


def mixed() -> TaskStream:
    """A stream of closed and free tasks, each with a score of its own."""
    signs = closed("signs", ("up", "down", "left"), "macro_f1")
    return TaskStream("mixed", (closed("colours", ("red", "blue")), free("news"), signs))


def uneven(name: str) -> Task:
    """A task whose prompts and free answers differ in length, so that batches are padded."""
    texts = [f"{name} " + "abcde"[number % 5] * (1 + number) for number in range(EXAMPLES)]
    targets = [text[-(number % 3 + 1) :] for number, text in enumerate(texts)]
    rows = Dataset.from_dict({"text": texts, "target": targets})
    return Task(name, (), rows, rows, rows, score="exact_match")
