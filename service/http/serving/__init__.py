"""The server under the application: uvicorn's, with connections, sockets and a shutdown of our own."""
