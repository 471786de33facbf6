"""What joins the rooms: from a recipe to weights, out-of-fold scores and a submission."""
