"""Training by gradient, on one process: how long, at what rate, on which contexts, and how to go on after a stop.

What is trained is a `loop.Learner`; healing has its own (methods/), and so may a model that starts from nothing.
"""
