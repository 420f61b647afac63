"""What a language model weighs and costs by its shape alone, and what a claim about it would need to be true.

Nothing here needs torch, or a weight of the model.
"""
