"""The two Flower apps of a run, as functions: an app folder's client_app.py and server_app.py call them."""
