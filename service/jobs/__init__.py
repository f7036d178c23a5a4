"""Training jobs: what one is and how it runs. ``records`` remembers, ``judging`` judges and ``views`` shows them."""
