"""Tables of five lines whose answer is text, in five formats."""

import json

ASKED = [f"what is {i} + {i}?" for i in range(5)]
SAID = [str(2 * i) for i in range(5)]


def turn(role, content):
    return {"role": role, "content": content}


CHAT = [
    {"messages": [turn("system", "be brief"), turn("user", asked), turn("assistant", said)]}
    for asked, said in zip(ASKED, SAID, strict=True)
]
COMPLETIONS = [
    {"prompt": asked, "completion": said} for asked, said in zip(ASKED, SAID, strict=True)
]
ALPACA = [
    {"instruction": "Add.", "input": f"{i}, {i}" if i % 2 else "", "output": said}
    for i, said in enumerate(SAID)
]
PAIRS = [
    {"premise": f"p{i}", "hypothesis": f"h{i}", "label": "yes" if i % 2 else "no"} for i in range(5)
]
LABELLED = [{"text": f"t{i}", "label": "yes" if i % 2 else "no"} for i in range(5)]


def lines(folder, rows, name="t.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
