"""The eval: plain signal processing that measures what a clip shows and plays, and how often that is what was asked."""
