"""A page in the browser that shows what a detector finds in any picture (extra `demo`)."""
