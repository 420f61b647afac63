"""Level: the budget. Predicts bytes and KL for any water level, and searches the level whose file weighs what it may."""
