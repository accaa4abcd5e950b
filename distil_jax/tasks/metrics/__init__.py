"""The official measures of tasks: numbers (`metrics`), entities, answers of SQuAD."""
