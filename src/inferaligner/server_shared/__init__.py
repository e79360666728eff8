"""Parts that the embedded server and the vLLM plugin share."""
