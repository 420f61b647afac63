"""Training by gradient: how long, at what rate, on which contexts, in how many processes, and going on after a stop.

What the loop trains is a `loop.Learner`: healing's (methods/). A golf has a loop of its own (golf/loop.py).
"""
