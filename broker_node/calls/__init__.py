"""One call a round: budgets in, one clearing of all, whole layers out, at the prices of all."""
