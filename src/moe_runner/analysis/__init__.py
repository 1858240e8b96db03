"""What the experts of a tuned model are: numbers, tables and pictures."""
