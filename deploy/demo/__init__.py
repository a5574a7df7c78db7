"""`auricle demo`: three synthetic institutions and a real federated job."""
