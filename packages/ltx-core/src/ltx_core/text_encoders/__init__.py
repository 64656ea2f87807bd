"""Prompts to contexts: Gemma with its projections and connectors for LTX-2, T5 for LTX-Video."""
