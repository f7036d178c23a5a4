"""The schemas of requests and answers, by topic, with all their limits."""
