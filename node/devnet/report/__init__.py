"""What a run of the devnet leaves for people: its report as JSON, plots, a page, tables."""
