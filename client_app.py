"""Flower ClientApp. The package has the code; name a function of your own that creates the app to change it."""

from fedddpm_app.client.forwarding import ForwardingClientApp

app = ForwardingClientApp("fedddpm_app.apps.client:diffusion_client_app")
