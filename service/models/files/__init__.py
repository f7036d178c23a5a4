"""The folder of models: its files, their versions, and who may write to it."""
