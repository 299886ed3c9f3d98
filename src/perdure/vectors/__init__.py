"""The algebra of what was learned: task vectors, eigenvalues, statistics of features.

It works on tensors alone and imports nothing that knows a model.

eigen.py        Leading eigenvectors
gaussians.py    Means and covariances of classes
statistics.py   Sums of features that are enough for Gaussian classes
task_vector.py  What an adapter adds to the weights, low-rank while exact
"""
