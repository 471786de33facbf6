"""Solutions: rounds of training, pseudo-labels and a submission, as one command."""
