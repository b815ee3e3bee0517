"""How many workers a fleet needs, who starts them on one machine, and what that would come to elsewhere."""
