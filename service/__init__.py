"""The web service: HTTP routes and dashboard, and the jobs and models behind them."""
