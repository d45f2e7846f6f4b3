"""What dots.llm1 is: its hyperparameters and names, its tokenizer, its chat template."""
