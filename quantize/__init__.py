"""One streaming pass from a safetensors checkpoint to a GGUF file."""
