"""The method: record, find the concept neurons, fine-tune them alone (Algorithm 1 of the paper)."""
