"""Label inference: the gradient that clients send back, where labels stay at home, tells them."""
