"""The world that a simulation stands in: real sites, round trips, people and their hours."""
