"""Small example programs; README.md lists them."""
