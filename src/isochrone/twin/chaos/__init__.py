"""What goes wrong in a run of the whole system, drawn from one seed."""
