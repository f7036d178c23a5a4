"""The pages of the dashboard. Importing any of them imports NiceGUI; see ``service.dashboard.mount``."""
