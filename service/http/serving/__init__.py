"""The server under the application: uvicorn's, with other connections and sockets and another end."""
