"""Level: the budget. Predicts bytes and KL of any water level, searches the one whose file fits."""
