"""Views, presenters and map tools. The only folder that knows widgets."""
