"""The scores of a task. Each file contains one function, and the file name is the score's name.

accuracy.py         The share of correct answers
bleu.py             BLEU over all answers together (sacrebleu)
code_similarity.py  The characters that lines of code share, with literals written out
edit_similarity.py  The share of characters that need no change
exact_match.py      The share of answers that are correct after normalisation
first_character.py  The share of answers that begin with the correct character
macro_f1.py         F1 of each class, averaged over classes
rouge_l.py          The longest common subsequence of words (rouge-score)
rouge_l_union.py    The words of the longest common subsequences of all sentences
sari.py             What a simplification keeps, deletes and adds
token_f1.py         F1 of the words shared by an answer and a correct answer
"""
