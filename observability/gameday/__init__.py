"""Game days: a whole stack on one machine, and causes for its alerts."""
