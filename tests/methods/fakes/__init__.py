"""Stand-ins for packages that are not here: their documented signatures, strictly, in float64."""
