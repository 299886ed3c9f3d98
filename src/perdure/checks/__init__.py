"""The promises of every method and every rule, as checks that their authors can run without pytest.

method.py   the checks of a method
models.py   the pico model and the toy tasks that they train on
rule.py     the checks of a rule
subject.py  a method under test, and its runs
suite.py    all checks of one method or rule, found by its name or in a Python file: `perdure check`

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from perdure.checks.method import MethodUnderTest, loss_is_one_number
>>> from perdure.methods.isolated import Isolated
>>> with TemporaryDirectory() as folder:
...     loss_is_one_number(MethodUnderTest("isolated", Isolated, Path(folder)))
"""
