"""A trace and a recipe in, a file out.  No model is needed."""
