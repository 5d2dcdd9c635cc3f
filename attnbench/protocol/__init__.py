"""What is measured and what decides, as data: no torch here."""
