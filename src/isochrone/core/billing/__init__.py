"""What usage costs: price sheets, charge models, and the lines that they make of quantities."""
