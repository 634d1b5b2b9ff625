"""What is written for a concept: prompts that name it, their anchors, and what must stay."""
