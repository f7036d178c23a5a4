"""What requests and answers look like, by topic, with every limit in the schema."""
