"""Operations of the trainer's golden cases, by subject."""
