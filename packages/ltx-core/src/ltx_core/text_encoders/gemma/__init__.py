"""The text conditioning of LTX-2: tokenizer, Gemma, feature extractor, connectors, prompt enhancement."""
