"""What becomes of a stream whose engine or site was lost in the middle of its answer."""
