"""How the project is set up, checked, packaged and shown: what ``build.py`` calls. Standard library only."""
