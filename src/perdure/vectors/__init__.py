"""Linear algebra for task vectors, eigenvectors, and statistics of features.

These modules work on tensors alone and import nothing that depends on a model.

drift.py        An affine map that carries statistics from one model's features to another's
eigen.py        Leading eigenvectors
gaussians.py    Class means and covariances
statistics.py   Sums of features that suffice to fit Gaussian classes
task_vector.py  Changes that adapters make to the weights, low-rank while exact
"""
