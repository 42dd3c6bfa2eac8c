"""What the author of an intervention needs: the base class, its call context, layers, checks."""
