"""The dashboard. ``mount`` imports its pages, and with them NiceGUI, when the first visitor comes."""
