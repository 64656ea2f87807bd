"""Sound to tokens and back: log-mel front end, audio VAE, vocoder, and 16-bit wav files."""
