"""Draw the README's picture from the runs of `perdure demo`: python docs/figure.py runs/demo docs/demo.svg"""

import sys
from pathlib import Path

from perdure.report import figures, summary

runs, output = Path(sys.argv[1]), Path(sys.argv[2])
found = summary.summarise([runs / "sequential", runs / "pic"])
titles = ["Sequential fine-tuning", "perdure (PIC + task posterior)"]
output.write_text(figures.readme_figure(found, ["concatenated", "posterior"], titles) or "", encoding="utf-8")
