"""Scores of a task: one file, one function. The file name is the score's name.

accuracy.py         The share of answers that equal a right one
bleu.py             BLEU over all answers together (sacrebleu)
edit_similarity.py  The share of characters that need no change
exact_match.py      The share of answers that equal a right one after normalisation
macro_f1.py         F1 of each class, averaged over classes
rouge_l.py          The longest common subsequence of words (rouge-score)
token_f1.py         The words that answer and right answer share
"""
