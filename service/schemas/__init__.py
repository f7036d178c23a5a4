"""The schemas of requests and answers, by topic, with all their limits.

- ``training``, ``jobs``, ``sweeps``, ``models``, ``inference``, ``environments``, ``server``: the topics.
- ``fields``, ``spaces``: what several of them share.
- ``duplicate_keys``, ``violations``: what is wrong with a request, in words. ``problems``: error answers.
"""
