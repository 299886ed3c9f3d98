"""Checks that every method and rule must pass, which their authors can run without pytest.

method.py   the checks of a method
models.py   the pico models and the toy tasks that the checks use
rule.py     the checks of a rule
subject.py  a method under test, and its runs
suite.py    runs all checks of one method or rule, given by name or as a file: `perdure check`

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from perdure.checks.method import MethodUnderTest, loss_is_one_number
>>> from perdure.methods.isolated import Isolated
>>> with TemporaryDirectory() as folder:
...     loss_is_one_number(MethodUnderTest("isolated", Isolated, Path(folder)))
"""
