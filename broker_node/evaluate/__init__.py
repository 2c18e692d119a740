"""What a sold model is worth to a buyer, measured on rows that neither of them chose."""
