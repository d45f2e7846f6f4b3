"""dots.llm1 on your own machine: quantize, prompt, chat."""
